"""`tacit client check` and `tacit client ledger`: what would stop a round is a line before the first one."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from federation_kits import accepted, enrolled, signed
from typer.testing import CliRunner

from client.check import Finding, certificate_finding, check_kit, clock_finding
from client.cli import app
from client.site import Site
from client.spending import spending
from server.front import Front
from server.provisioning import CoordinatorKit
from server.roster_desk import RosterDesk
from tacit import config, toml
from tacit.privacy.accountant import Event
from tacit.processes import free_port

ROWS = "age,outcome\n" + "".join(f"{age},{age % 2}\n" for age in range(100))
EXPERIMENT = """
name = "planned"
[secure_aggregation]
max_dropouts = 0
[federation]
sites = [{ label = "one", rows = 100 }, { label = "two", rows = 100 }, { label = "three", rows = 100 }]
[data.schema]
label = "outcome"
classes = ["0", "1"]
[data.schema.columns.age]
kind = "numeric"
range = [0, 120]
"""
# Flower's own use of pathspec.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorKit:
    """Three sites that have accepted a roster; the coordinator's address has a free port."""
    out = tmp_path_factory.mktemp("federation")
    rows = dict.fromkeys(("one", "two", "three"), 100)
    kit = enrolled(out, rows, address=f"localhost:{free_port()}")
    signed(kit)
    accepted(kit)
    for label in rows:
        (out / "kits" / label / "data.csv").write_text(ROWS)
    return kit


@pytest.fixture
def front(kits: CoordinatorKit) -> Iterator[None]:
    port = int(address_of(kits).rpartition(":")[2])
    with ExitStack() as stack:
        desk = RosterDesk(kits.folder / "roster.json")
        tls = (kits.folder / "tls.pem", kits.folder / "tls.key")
        stack.enter_context(
            Front("https://127.0.0.1:1", port=port, tls=tls, ca=kits.folder / "ca.pem", desk=desk)
        )
        yield


def address_of(kits: CoordinatorKit) -> str:
    return str(toml.read_toml(kits.folder.parent / "one" / "federation.toml")["address"])


def states(findings: list[Finding]) -> dict[str, str]:
    """The worst state of each thing that was looked at."""
    order = ["ok", "warn", "fail"]
    worst: dict[str, str] = {}
    for finding in findings:
        worst[finding.what] = max(worst.get(finding.what, "ok"), finding.state, key=order.index)
    return worst


def site_of(kits: CoordinatorKit, label: str = "one") -> Path:
    return kits.folder.parent / label


def test_a_site_that_is_ready_has_no_line_that_fails(kits: CoordinatorKit, front: None) -> None:
    found = states(check_kit(site_of(kits), config.loads(EXPERIMENT), connects=True))
    assert "fail" not in found.values(), found
    assert found.keys() >= {
        "files", "site", "data", "schema", "policy", "ledger", "enrolment", "connection", "certificate",
        "clock", "roster",
    }  # fmt: skip
    assert found["clock"] == "ok"
    assert CliRunner().invoke(app, ["check", str(site_of(kits))]).exit_code == 0


WITHOUT_SITES = EXPERIMENT.replace("[federation]\nsites = [", "#[")


def test_an_experiment_that_names_no_sites_is_checked_with_those_of_the_roster(kits: CoordinatorKit) -> None:
    for dropouts, state in ((0, "warn"), (1, "fail")):  # of three, one corrupt: two honest ones, or one
        planned = config.loads(WITHOUT_SITES.replace("max_dropouts = 0", f"max_dropouts = {dropouts}"))
        assert states(check_kit(site_of(kits), planned, connects=False))["policy"] == state


def test_before_a_roster_is_accepted_it_is_said_that_the_cohort_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('label = "one"\ndata_set = "one"\n')
    (tmp_path / "policy.toml").write_text("epsilon_ceiling = 4.0\ndelta = 1e-5\n")
    found = check_kit(tmp_path, config.loads(WITHOUT_SITES), connects=False)
    assert [f.state for f in found if f.what == "policy"] == ["warn", "ok"], found


def test_an_archive_of_arrays_is_counted_and_checked_as_a_table_is(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('label = "one"\ndata_set = "one"\ndata = "data.npz"\n')
    np.savez(tmp_path / "data.npz", x=np.zeros((30, 2, 3)), y=np.arange(30) % 2)
    for shape, state in (((2, 3), "ok"), ((3, 2), "fail")):
        data = {"source": "npz", "path": "x.npz", "arrays": {"shape": shape, "classes": ["0", "1"]}}
        planned = config.parse(
            {"name": "x", "task": {"kind": "array_classification"}, "data": data}, source=""
        )
        found = check_kit(tmp_path, planned, connects=False)
        assert [f.text for f in found if f.what == "data"] == [f"{tmp_path / 'data.npz'}, 30 rows"]
        assert [f.state for f in found if f.what == "schema"] == [state], found


def no_data(site: Path) -> None:
    (site / "data.csv").unlink()


def half_the_data(site: Path) -> None:
    (site / "data.csv").write_text("".join(ROWS.splitlines(keepends=True)[:30]))


def ragged_data(site: Path) -> None:
    (site / "data.csv").write_text(ROWS + "1,2,3\n")


def other_columns(site: Path) -> None:
    (site / "data.csv").write_text(ROWS.replace("age", "years", 1))


def wrong_policy(site: Path) -> None:
    (site / "policy.toml").write_text("epsilon_ceiling = -1\n")


def strict_policy(site: Path) -> None:
    (site / "policy.toml").write_text('allowed_tasks = ["other:Task"]\n')


def open_policy(site: Path) -> None:
    (site / "policy.toml").write_text("allow_single_updates = true\n")


def open_key(site: Path) -> None:
    (site / "node.key").chmod(0o644)


def open_folder(site: Path) -> None:
    site.chmod(0o755)


def open_ledger(site: Path) -> None:
    (site / "ledger").mkdir(mode=0o755)


def no_keys(site: Path) -> None:
    for name in ("identity.key", "node.key", "request.json"):
        (site / name).unlink()


def other_ca(site: Path) -> None:
    (site / "ca.pem").write_text("nothing\n")


def no_roster(site: Path) -> None:
    for name in ("roster.jsonl", "roster.jsonl.head"):
        (site / name).unlink()


@pytest.fixture
def put_back(kits: CoordinatorKit) -> Iterator[None]:
    site = site_of(kits)
    before = {
        path: (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in site.iterdir()
        if path.is_file()
    }
    yield
    site.chmod(0o700)
    for path in site.iterdir():
        if path.is_dir():
            path.rmdir()
        elif path not in before:
            path.unlink()
    for path, (content, mode) in before.items():
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, mode), "wb") as file:
            file.write(content)


@pytest.mark.parametrize(
    ("spoil", "what", "state"),
    [
        (no_data, "data", "fail"),
        (half_the_data, "data", "warn"),
        (ragged_data, "data", "fail"),
        (other_columns, "schema", "fail"),
        (wrong_policy, "site", "fail"),
        (strict_policy, "policy", "fail"),
        (open_policy, "policy", "warn"),
        (open_key, "files", "fail"),
        (open_folder, "files", "fail"),
        (open_ledger, "files", "fail"),
        (no_keys, "enrolment", "fail"),
        (other_ca, "enrolment", "fail"),
        (no_roster, "roster", "warn"),
    ],
)
def test_what_would_stop_a_round_is_found_before_it(
    spoil: Callable[[Path], None], what: str, state: str, kits: CoordinatorKit, front: None, put_back: None
) -> None:
    spoil(site_of(kits))
    findings = check_kit(site_of(kits), config.loads(EXPERIMENT), connects=True)
    assert states(findings)[what] == state, findings
    for finding in findings:
        assert "outcome,1" not in finding.text and "\n" not in finding.text
    code = CliRunner().invoke(app, ["check", str(site_of(kits))]).exit_code
    if what not in ("schema", "policy"):  # which need the experiment
        assert code == (state == "fail")


def test_a_coordinator_that_is_not_there_is_found(kits: CoordinatorKit) -> None:
    findings = check_kit(site_of(kits), None, connects=True)
    assert states(findings)["connection"] == "fail"
    assert "localhost" in next(f.text for f in findings if f.what == "connection")


def test_J3_a_server_of_another_ca_is_found(
    kits: CoordinatorKit, front: None, put_back: None, tmp_path: Path
) -> None:
    stranger = enrolled(tmp_path, dict.fromkeys(("one", "two", "three"), 10))
    (site_of(kits) / "ca.pem").write_bytes((stranger.folder / "ca.pem").read_bytes())
    findings = check_kit(site_of(kits), None, connects=True)
    assert states(findings)["certificate"] == "fail"


@pytest.mark.parametrize(
    ("days", "state"), [(-1, "warn"), (0, "warn"), (29, "warn"), (30, "ok"), (300, "ok")]
)
def test_a_certificate_that_ends_within_30_days_is_warned_of(days: int, state: str) -> None:
    assert certificate_finding(days, NOW + timedelta(days=days)).state == state


@pytest.mark.parametrize(
    ("seconds", "state"),
    [(0, "ok"), (3, "ok"), (6, "fail"), (-200, "ok"), (-306, "fail"), (86_400, "fail"), (-86_400, "fail")],
)
def test_D11_a_clock_that_flower_would_refuse_is_found(seconds: int, state: str) -> None:
    theirs = format_datetime(NOW - timedelta(seconds=seconds), usegmt=True)
    assert clock_finding(theirs, NOW).state == state


def test_a_coordinator_without_a_clock_is_no_failure() -> None:
    assert clock_finding("", NOW).state == "warn"
    assert clock_finding("yesterday", NOW).state == "warn"


def test_what_has_been_spent_is_shown_by_run_and_in_all(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "site.toml").write_text('label = "here"\ndata_set = "d"\n')
    assert CliRunner().invoke(app, ["ledger", str(tmp_path)]).stdout == "nothing has been released\n"
    event = Event("poisson_gaussian", 2.0, 0.1, 10)
    with Site.open(tmp_path).ledger() as ledger:
        for run, rounds in (("a" * 32, 3), ("b" * 32, 1)):
            for number in range(rounds):
                ledger.debit(run, number + 1, 1, "training", "record", event, delta=1e-5)
        expected = ledger.spent(1e-5)
    found = spending(tmp_path, 0.0)
    assert [(s.run[:1], s.num_debits) for s in found] == [("a", 3), ("b", 1), ("", 4)]
    assert found[-1].epsilon == expected >= found[0].epsilon > found[1].epsilon > 0
    assert spending(tmp_path, 1e-3)[-1].epsilon < expected
    shown = CliRunner().invoke(app, ["ledger", str(tmp_path)]).stdout
    assert "a" * 32 in shown and f"{expected:.3f}" in shown
    (row, *_) = json.loads(CliRunner().invoke(app, ["ledger", str(tmp_path), "--json"]).stdout)
    assert row["num_debits"] == 3 and row["delta"] == 1e-5


def test_a_run_without_privacy_has_spent_infinity(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "site.toml").write_text('label = "here"\ndata_set = "d"\n')
    with Site.open(tmp_path).ledger() as ledger:
        ledger.debit("c\x1b[2J", 1, 1, "training", "none", Event("gaussian", 0.0))
    (row,) = json.loads(CliRunner().invoke(app, ["ledger", str(tmp_path), "--json"]).stdout)
    assert row["epsilon"] is None and row["unit"] == "none"
    shown = CliRunner().invoke(app, ["ledger", str(tmp_path)]).stdout
    assert "inf" in shown and r"c\x1b[2J" in shown, "no terminal obeys an id that the coordinator has chosen"
