"""Every sentence of a *Guarantees* section has a test, and the table that says which is complete and fresh.

The table is `guarantees.toml`: file -> sentence, word for word -> tests. A sentence that is changed has to be changed
there too, so whoever rewords a claim looks at its test. That the tests test what the sentence says is for the
reader of both; that they can fail is shown by the seeded faults.
"""

import ast
import re
import tomllib

import pytest

from tests.architecture.sources import documented, has_test, modules, text, tree

TABLE: dict[str, dict[str, list[str]]] = tomllib.loads(text("tests/architecture/guarantees.toml"))


def guarantees(module: ast.Module) -> list[str]:
    """The sentences of all *Guarantees* sections of a file, each on one line."""
    found = []
    for _, _, docstring in documented(module):
        _, heading, rest = f"\n{docstring}\n".partition("\nGuarantees:\n")
        if heading:
            section = " ".join(re.split(r"\n(?=\S)", rest)[0].split())
            # What stands in brackets behind a sentence belongs to it.
            found += re.split(r"(?<=\.) (?=[A-Z`])|(?<=\.\)) (?=[A-Z`])", section)
    return found


def test_every_guarantee_is_in_the_table_and_the_table_holds_nothing_else() -> None:
    stated = {(path, sentence) for path in modules() for sentence in guarantees(tree(path))}
    listed = {(path, sentence) for path, rows in TABLE.items() for sentence in rows}
    assert sorted(stated - listed) == [], "without a test"
    assert sorted(listed - stated) == [], "no longer stated"


def test_every_guarantee_has_a_test_that_exists() -> None:
    missing = [
        f"{path}: {sentence}"
        for path, rows in TABLE.items()
        for sentence, tests in rows.items()
        if not tests or not all(has_test(f"tests/{test}") for test in tests)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("section", "sentences"),
    [
        (
            "    One.\n    Two is\n    long.\n\n    Three.\n\nRaises:\n    E: x.",
            ["One.", "Two is long.", "Three."],
        ),
        ("    `a` is. (Mostly.) `b` too.", ["`a` is. (Mostly.)", "`b` too."]),
        ("    As Q et al., 'T', said (X 2020).\nMore.", ["As Q et al., 'T', said (X 2020)."]),
    ],
)
def test_sentences_are_found(section: str, sentences: list[str]) -> None:
    docstring = f"Does.\n\nGuarantees:\n{section}"
    assert guarantees(ast.parse(f"class A:\n    {docstring!r}")) == sentences
    assert guarantees(ast.parse(repr(docstring.replace("Guarantees", "Notes")))) == []
