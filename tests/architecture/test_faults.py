"""The register of seeded faults fits the code, and what it promises is kept: each fault turns its test red."""

import ast

import pytest

from tests.architecture.sources import ROOT, has_test, text
from tests.faults import Fault, main, plant, register

HARMLESS = Fault(
    "a comment",
    "tacit/secagg/prg.py",
    "from __future__ import annotations\n",
    "from __future__ import annotations  # and nothing else\n",
    "tests/unit/test_secagg_prg.py::test_what_is_no_key_and_no_vector_is_an_error",
)
NO_CODE = Fault("no code", HARMLESS.file, HARMLESS.text, "from __future__ import\n", HARMLESS.test)
NO_TEST = Fault("no test", HARMLESS.file, HARMLESS.text, "", HARMLESS.test.replace("what_is", "what_was"))


def test_every_fault_fits_the_code_as_it_is() -> None:
    faults, wrong = register(), []
    for fault in faults:
        try:
            edited = fault.edited(text(fault.file))
            if fault.file.endswith(".py"):
                ast.parse(edited)
        except (ValueError, SyntaxError, OSError) as error:
            wrong.append(f"{fault.name}: {error}")
        if fault.text == fault.instead or not has_test(fault.test):
            wrong.append(f"{fault.name}: changes nothing, or {fault.test} is not there")
    assert wrong == []
    assert len({fault.name for fault in faults}) == len(faults) >= 40


def test_the_faults_that_matter_most_are_killed() -> None:
    outcomes = list(plant([fault for fault in register() if fault.short]))
    assert {outcome.fault.name: outcome.verdict for outcome in outcomes if outcome.verdict != "killed"} == {}
    assert len(outcomes) >= 8


def test_what_is_no_fault_is_not_called_killed() -> None:
    survived, unreadable, untested = plant([HARMLESS, NO_CODE, NO_TEST])
    assert survived.verdict == "survived"
    assert unreadable.verdict == "the test was not run: the edit cannot be imported"
    assert untested.verdict == "no such test"
    assert (ROOT / HARMLESS.file).read_text() == text(HARMLESS.file)  # planted in copies only


def test_no_fault_is_no_test_at_all() -> None:
    assert list(plant([])) == []


def test_the_command_lists_and_names_its_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(register())
    with pytest.raises(SystemExit):
        main(["no such fault"])
    assert "no such fault: no such fault" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_other_faults_are_killed() -> None:
    outcomes = list(plant([fault for fault in register() if not fault.short]))
    assert {outcome.fault.name: outcome.verdict for outcome in outcomes if outcome.verdict != "killed"} == {}
