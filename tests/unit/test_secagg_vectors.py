"""Golden vectors: the product and an implementation written from `docs/protocol.md` alone give the same bytes.

`python -m tests.vectors` writes them. Who changes one has made another protocol, which needs another name.
"""

import ast
import subprocess
import sys

import pytest

from tests.architecture.sources import ROOT
from tests.reference.answers import KINDS as REFERENCE
from tests.reference.parameters import Rules, derive
from tests.reference.rounds import vector
from tests.vectors.produce import FOLDER, answered, files, read, refused
from tests.vectors.product import KINDS as PRODUCT

FILES = read()
CASES = {case["name"]: case for listed in FILES.values() for case in listed}
SIDES = {"product": PRODUCT, "reference": REFERENCE}
ATTEMPTS = [case for case in CASES.values() if case["kind"] == "attempt"]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", CASES)
def test_A8_a_second_implementation_gives_the_same_bytes(name, side):
    case = CASES[name]
    assert answered(case["kind"], case["given"], SIDES[side]) == case["expected"]


def test_A8_the_files_hold_what_the_command_is_about():
    given = {name: [(case["name"], case["kind"], case["given"]) for case in FILES[name]] for name in FILES}
    assert given == {name: [(case, *rest) for case, rest in made.items()] for name, made in files().items()}


def test_A8_every_bad_vector_is_refused_for_the_reason_that_was_planned():
    for name, (_, _, expected) in refused().items():
        found = CASES[name]["expected"]
        if expected:
            assert found == expected
        else:
            assert bytes.fromhex(found["answer"]).startswith(b"\0\0\0\x14tacit/1/M2/complaint")


def test_A8_there_are_thirty_vectors_of_which_ten_are_bad_and_they_are_small():
    assert len(CASES) == sum(map(len, FILES.values()))
    assert len(CASES) - len(FILES["refused.json"]) >= 20
    assert len(FILES["refused.json"]) >= 10
    assert sum(path.stat().st_size for path in FOLDER.glob("*.json")) < 300_000


def test_A8_the_attempts_have_every_width_both_graphs_and_every_kind_of_drop_out():
    found = [case["given"]["attempt"] for case in ATTEMPTS]
    parameters = [derive(a["n"] - len(a.get("gone", {}).get("M0", ())), Rules(**a["rules"])) for a in found]
    assert {p.b for p in parameters} == {8, 17, 24, 25, 32}
    assert {p.ring for p in parameters} == {False, True}
    assert {step for a in found for step in a.get("gone", {})} == {"M0", "M1", "M2", "M3"}


@pytest.mark.parametrize("case", ATTEMPTS, ids=[case["name"] for case in ATTEMPTS])
def test_A8_the_sums_are_those_of_the_vectors_that_were_sent(case):
    given = case["given"]["attempt"]
    gone = {u for step in ("M0", "M1", "M2") for u in given.get("gone", {}).get(step, ())}
    sent = [vector(given, u) for u in range(given["n"]) if u not in gone]
    assert case["expected"]["sum"] == [sum(column) for column in zip(*sent, strict=True)]


def test_A8_the_reference_loads_nothing_of_the_product():
    code = (
        "import sys, tests.reference.answers;"
        "print(*sorted({m.partition('.')[0] for m in sys.modules} & {'tacit', 'client', 'server', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    for path in (ROOT / "tests/reference").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            allowed = (*sys.stdlib_module_names, "cryptography")
            assert all(n.startswith("tests.reference") or n.partition(".")[0] in allowed for n in names), path
