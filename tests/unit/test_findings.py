"""The report of a federation's run, from its coordinator's files alone."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from server.findings import federation_of, record_of
from server.provisioning import provision
from server.runs import Queue, Run
from server.state import RunState
from tacit import config
from tacit.cli import main
from tacit.report.statement import privacy_statement
from tacit.report.storage import read_json
from tests.unit.federation_kits import enrolled, signed
from tests.unit.run_folders import progress

# Flower's own use of pathspec, for the hash of the bundle in the roster.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROWS = {f"site-{i}": 200 + i for i in range(4)}
SITES = "".join(f'[[federation.sites]]\nlabel = "{label}"\nrows = {rows}\n' for label, rows in ROWS.items())
EXPERIMENT = f"""
name = "clinics"
[data.schema]
label = "y"
classes = ["0", "1"]
[data.schema.columns]
x = {{ kind = "numeric", range = [0, 1] }}
[training]
rounds = 3
[secure_aggregation]
max_corrupt = 1
[privacy.record]
epsilon = 4.0
delta = 1e-4
metrics_share = 0.1
[evaluation]
metrics = true
{SITES}"""


def row(number: int, epsilon: float | None = 1.0) -> dict[str, object]:
    """A line of rounds.jsonl, as `strategies.rounds` writes it."""
    return {
        "round": number,
        "seconds": 0.5,
        "cohort": [*ROWS],
        "survivors": [*ROWS][1:],
        "refusals": {"rate": 1},
        "metrics": {"loss": 0.5 / number},
        "epsilon": epsilon,
        "bytes_up": 900,
        "bits": 21,
        "threshold": 3,
        "num_clipped": None,
        "attempts": 1,
        "blamed": [],
        "phases": {},
        "clip": None,
    }


@pytest.fixture(scope="module")
def first_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kit = enrolled(tmp_path_factory.mktemp("kits"), ROWS)
    signed(kit)
    return kit.folder


@pytest.fixture
def kit(first_kit: Path, tmp_path: Path) -> Path:
    return shutil.copytree(first_kit, tmp_path / "kit")


def begun(kit: Path, text: str = EXPERIMENT, rounds: int = 2) -> Run:
    """A run that a `ServerApp` has worked on."""
    run = Queue(kit / "state" / "runs").submit(config.loads(text))
    run.set("running")
    state = RunState(run.folder, run.experiment, 0)
    epsilon = 1.0 if "[privacy" in text else None
    for number in range(rounds + 1):
        state.save(progress(number), row(number, epsilon) if number else None)
    state.close()
    return run


def tacit(*arguments: object) -> object:
    """The exit code."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_a_federations_run_has_a_report_and_a_statement_that_names_what_was_agreed(
    kit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(kit)
    run.set("finished", "finished")
    assert tacit("report", "--kit", kit) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"report: {run.folder / 'report.html'}",
        f"privacy statement: {run.folder / 'privacy-statement.md'}",
    ]
    assert tacit("runs", "--kit", kit) == 0
    assert capsys.readouterr().out.strip().endswith(f"clinics  {run.folder / 'report.html'}")
    record = read_json(run.folder / "report.json")
    assert (record.engine, record.outcome, len(record.rounds)) == ("superlink", "finished", 2)
    assert record.final.metrics == {"loss": 0.25} and not record.rounds[0].metrics
    assert record.federation is not None and record.federation.signatures == record.federation.members == 4
    statement = (run.folder / "privacy-statement.md").read_text(encoding="utf-8")
    (promise,) = record.privacy
    for words in (
        "one row of one site's table",
        f"**Epsilon**: {promise.epsilon:.4g}"[:16],
        "**Delta**: 0.0001",
        "**Accountant**: PLD (dp-accounting",
        f"**Paid for**: {promise.debits} releases",
        "nobody outside the site",
        "all 4 members have signed it",
        "**n_min**: 4",
        "**c**: 1",
        "**D**: 0",
        record.federation.digest,
        "What is not covered",
        "each site's own figure, which is in its ledger",
        f"tacit client ledger KIT, run {run.id}",
    ):
        assert words in statement
    assert "simulation" not in statement
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "all 4 members have signed it" in page and "Pooled" not in page


def test_without_plotting_the_statement_is_written_and_the_missing_extra_is_one_line(
    kit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(kit)
    run.set("finished", "finished")
    (run.folder / "report.html").write_text("of an earlier end")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert tacit("report", run.id[:8], "--kit", kit) == 0
    said = capsys.readouterr()
    assert said.err == (
        "no report.html: an HTML report needs the extra 'simulation': pip install 'tacit[simulation]'\n"
    )
    assert said.out == f"privacy statement: {run.folder / 'privacy-statement.md'}\n"
    assert not (run.folder / "report.html").exists()
    assert read_json(run.folder / "report.json").run_id == run.id


@pytest.mark.parametrize(
    ("state", "reason", "outcome"),
    [
        ("finished", "stopped early", "stopped early"),
        ("stopped", "by tacit stop", "stopped"),
        ("failed", "no sum\nand a log", "failed: no sum"),
    ],
)
def test_a_run_that_ended_otherwise_has_its_report_too(
    kit: Path, state: str, reason: str, outcome: str
) -> None:
    run = begun(kit)
    run.set(state, reason)
    assert tacit("report", "--kit", kit) == 0
    assert read_json(run.folder / "report.json").outcome == outcome


def test_what_has_not_begun_or_not_ended_has_no_report(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Queue(kit / "state" / "runs").submit(config.loads(EXPERIMENT))
    run.set("stopped", "by tacit stop")
    assert tacit("report", "--kit", kit) == 2
    assert "has not begun" in capsys.readouterr().err
    begun(kit)
    assert tacit("report", "--kit", kit) == 2
    assert "is running: its report is written when it has ended" in capsys.readouterr().err


def test_a_federations_run_without_privacy_says_so_first(kit: Path) -> None:
    run = begun(
        kit, EXPERIMENT.replace("[privacy.record]\nepsilon = 4.0\ndelta = 1e-4\nmetrics_share = 0.1\n", "")
    )
    assert privacy_statement(record_of(run, kit, "finished")).startswith("# NOT PRIVATE")


def test_the_statement_names_the_holder_of_an_offline_root(tmp_path: Path) -> None:
    from server.epochs import add_signatures, proposal
    from tacit.secagg.identity import Identity, fingerprint

    kit = enrolled(tmp_path, ROWS)
    root = Identity.create(tmp_path / "root.key")
    (tmp_path / "root.pub").write_text(root.public.hex())
    file = tmp_path / "federation.toml"
    with pytest.raises(config.ConfigError, match=r"root_holder: is missing: .* say who holds its key"):
        provision(file, tmp_path / "kits", root=tmp_path / "root.pub")
    file.write_text('root_holder = "Ministry of Health, J. Doe"\n' + file.read_text())
    kit, _ = provision(file, tmp_path / "kits", root=tmp_path / "root.pub")
    from server.epochs import collect

    collect(kit, [tmp_path / "kits" / label / "request.json" for label in ROWS], restart=True)
    newest = proposal(kit)
    assert newest is not None
    add_signatures(kit, newest.sign(root))
    agreed = federation_of(kit)
    assert agreed is not None and (agreed.root_key, agreed.signatures) == (fingerprint(root.public), 0)
    statement = privacy_statement(record_of(begun(kit.folder), kit.folder, "finished"))
    assert "Ministry of Health, J. Doe, who holds the offline root key" in statement
    assert fingerprint(root.public) in statement and "members have signed it" not in statement


def test_the_record_of_a_federation_holds_no_figure_of_a_site(kit: Path) -> None:
    record = json.loads(record_of(begun(kit), kit, "finished").model_dump_json())
    assert record["ledger"] == record["partition"] == record["final"]["sites"] == []
    assert all(entry["epsilon_spent"] is None for entry in record["privacy"])
