"""Fault lists: what a file may say, what each kind does to a round, and that a list plays the same twice."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_records import run_record

from client.app import app as client_app
from server.cli import serve
from server.state import read_rounds
from simulations.faults import FAILURES, KINDS, LIES, Fault, FaultList
from simulations.faulty_app import PLAYED, FaultyApp, read_played
from simulations.lies import PLAYS
from tacit import config
from tacit.errors import ConfigError, RunFailed
from tacit.report.html import render_html
from tacit.report.record import PlayedFault
from tests.unit.small_federation import PRIVATE, Federation, ledger_entries, same

LABELS = tuple(f"site-{i}" for i in range(1, 7))
LAST = 2


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Not private; the real protocol. n = 6, D = 2, c = 1, T = 4."""
    return Federation(tmp_path_factory.mktemp("plain"), f"training.rounds={LAST}")


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("private"), f"training.rounds={LAST}", PRIVATE)


def listed(folder: Path, text: str, *settings: str) -> FaultList:
    """A list as a file, read under the experiment of a small federation."""
    path = folder / "list.toml"
    path.write_text(text)
    base = f'name = "x"\n[training]\nrounds = {LAST}\n[partition]\nnum_clients = 6'
    experiment = config.loads(base, overrides=[f'simulation.faults="{path}"', *settings])
    faults = FaultList.load(experiment)
    assert faults is not None
    return faults.among(LABELS)


def entry(**keys: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(["[[fault]]", *lines, ""])


def play(
    federation: Federation, folder: Path, text: str, *settings: str, **how: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """The model after the last round, and the rounds' records; what was played lies in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    app = FaultyApp(client_app, listed(folder, text, *settings), folder / PLAYED)
    arrays = federation.run(folder / "run", app=app, **how)
    return arrays, read_rounds(folder / "run" / "rounds.jsonl")


# -- what a list may say -----------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"round": 1, "site": "site-1", "phase": "vector", "kind": "drop"}
OPEN = {**GOOD, "phase": "training"}
IDEAL, SINGLE = 'secure_aggregation.engine="ideal"', "secure_aggregation.enabled=false"
MISTAKES: dict[str, tuple[str, str]] = {
    "unknown key": (entry(**GOOD, where="x"), "fault 2: where: unknown key"),
    "nearly a key": (entry(**GOOD, chanc=0.5), "fault 2: chanc: unknown key; did you mean 'chance'?"),
    "unknown table": (f"other = 1\n{entry(**GOOD)}", "other: unknown key"),
    "no TOML": ("[[fault", "not valid TOML: "),
    "nothing in it": ("", "there is no [[fault]] in it"),
    "not a list": ("fault = 1", "there is no [[fault]] in it"),
    "unknown site": (entry(**{**GOOD, "site": "site-7"}), "fault 2: site: there is no site 'site-7'; there are "),
    "unknown phase": (entry(**{**GOOD, "phase": "masks"}), "fault 2: phase: input should be 'keys', "),
    "unknown kind": (entry(**{**GOOD, "kind": "sleep"}), "fault 2: kind: input should be 'drop', "),
    "kind in another phase": (entry(**{**GOOD, "kind": "swap-key"}), 'fault 2: kind "swap-key" has phase shares'),
    "no phase": (entry(round=1, site="site-1", kind="drop"), "fault 2: phase: required key is missing"),
    "no round": (entry(site="site-1", phase="vector", kind="drop"), "fault 2: needs one of round, rounds, every"),
    "two kinds of round": (entry(**GOOD, every=2), "fault 2: needs one of round, rounds, every and since"),
    "round 0": (entry(**{**GOOD, "round": 0}), "fault 2: round: input should be greater than or equal to 1"),
    "a round after the last": (entry(**{**GOOD, "round": 3}), "fault 2: round 3 of a run that has 2"),
    "site and share": (entry(**GOOD, share=0.5), "fault 2: needs one of site, sites and share"),
    "a share above 1": (entry(round=1, share=1.5, phase="keys", kind="drop"), "fault 2: share: input should be"),
    "a reason without refuse": (entry(**GOOD, reason="x"), 'fault 2: reason belongs to kind = "refuse"'),
    "a factor without boost": (entry(**GOOD, factor=2.0), 'fault 2: factor belongs to kind = "boost"'),
    "a share of sites": (entry(round=1, sites=["site-1"], share=0.5, phase="keys", kind="nan"), "fault 2: needs one"),
    "an unknown one of sites": (entry(round=1, sites=["x"], phase="keys", kind="drop"), "fault 2: sites: there is no"),
    "until without since": (entry(**GOOD, until=2), "fault 2: until belongs to every or since"),
    "together without chance": (entry(**GOOD, together=True), "fault 2: together belongs to chance"),
    "a chance above 1": (entry(**GOOD, chance=1.5), "fault 2: chance: input should be"),
    "seconds without straggle": (entry(**GOOD, seconds=5.0), 'fault 2: seconds belongs to kind = "straggle"'),
    "a round after the last one, since": (
        entry(since=3, site="site-1", phase="keys", kind="drop"), "fault 2: round 3 of a run that has 2"),
    "a phase without a protocol": (entry(**OPEN), 'fault 2: phase "training": the protocol has keys, shares, '),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_with_file_and_entry(tmp_path: Path, case: str) -> None:
    text, said = MISTAKES[case]
    with pytest.raises(ConfigError) as caught:
        listed(tmp_path, f"{entry(**GOOD)}{text}" if text.startswith("[[fault]]") else text)
    assert str(caught.value).startswith(f"{tmp_path / 'list.toml'}: {said}")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("setting", "mode"), [(IDEAL, "the ideal sum"), (SINGLE, "a run without a secure sum")]
)
def test_without_the_protocol_sites_fail_and_lies_are_refused_with_a_reason(
    tmp_path: Path, setting: str, mode: str
) -> None:
    for kind in FAILURES:
        listed(tmp_path, entry(**{**OPEN, "kind": kind}), setting)
        with pytest.raises(ConfigError, match=f'fault 1: phase "vector": {mode} has training$'):
            listed(tmp_path, entry(**{**GOOD, "kind": kind}), setting)
    for kind, phases in LIES.items():
        with pytest.raises(
            ConfigError, match=f'fault 1: kind "{kind}" is a lie within the protocol; {mode} plays'
        ):
            listed(tmp_path, entry(**{**GOOD, "kind": kind, "phase": phases[0]}), setting)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    experiment = config.loads('name = "x"', overrides=[f'simulation.faults="{tmp_path / "no.toml"}"'])
    with pytest.raises(ConfigError, match=r"no\.toml: simulation\.faults: cannot be read: No such file"):
        FaultList.load(experiment)


def test_real_processes_refuse_a_list(tmp_path: Path) -> None:
    experiment = config.loads('name = "x"\n[simulation]\nfaults = "list.toml"')
    with pytest.raises(ConfigError, match=r"simulation\.faults: real processes play no faults yet"):
        serve(experiment, tmp_path / "state", tmp_path, port=0, num_clients=0)
    assert list(tmp_path.iterdir()) == []


def test_every_kind_can_be_written_and_played() -> None:
    kinds = set(Fault.model_fields["kind"].annotation.__args__)  # type: ignore[union-attr]
    assert kinds == set(KINDS) == set(PLAYS)


def test_a_share_of_the_sites_is_drawn_anew_for_each_round_by_the_seed(tmp_path: Path) -> None:
    text = entry(every=1, share=0.5, phase="keys", kind="drop")
    faults = listed(tmp_path, text)
    drawn = [tuple(faults.sites(1, n)) for n in range(1, 21)]
    assert {len(set(sites)) for sites in drawn} == {3}
    assert len(set(drawn)) > 5
    # As it was in another process, too.
    assert drawn[:2] == [("site-1", "site-4", "site-6"), ("site-3", "site-5", "site-6")]
    assert drawn != [tuple(listed(tmp_path, text, "seed=8").sites(1, n)) for n in range(1, 21)]
    assert {site for sites in drawn for site in sites} == set(LABELS)
    assert len(listed(tmp_path, entry(round=1, share=0.01, phase="keys", kind="drop")).sites(1, 1)) == 1
    assert faults.sites(1, 0) == []  # where a scaling is learnt


def test_rounds_and_attempts_are_those_of_the_entry_and_the_first_that_fits_is_played(tmp_path: Path) -> None:
    faults = listed(
        tmp_path,
        entry(every=2, site="site-1", phase="keys", kind="drop")
        + entry(rounds=[1, 2], site="site-1", phase="keys", kind="late")
        + entry(round=1, site="site-2", phase="keys", kind="crash", attempt=2),
    )
    found = {(n, a): (hit := faults.at("site-1", n, a, "keys")) and hit[0] for n in (1, 2, 3) for a in (1, 2)}
    assert found == {(1, 1): 2, (1, 2): 2, (2, 1): 1, (2, 2): 1, (3, 1): None, (3, 2): None}
    assert [bool(faults.at("site-2", 1, attempt, "keys")) for attempt in (1, 2, 3)] == [False, True, False]
    assert faults.at("site-1", 1, 1, "shares") is None


# -- what each kind does -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A fault of site 2 in round 2, and what comes of it."""

    kind: str
    phase: str
    happened: str
    refusals: dict[str, int] = field(default_factory=dict)
    in_sum: bool = False
    blamed: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


SILENT, UP = {"no-answer": 1}, ("keys", "shares", "vector")
TWO_SETS = "one set: answered; another: refused: phase"
CASES = [
    *(Case("drop", p, "no answer", SILENT, p not in UP) for p in (*UP, "confirm", "open")),
    *(Case("late", p, "answered, too late", SILENT, p not in UP) for p in (*UP, "confirm", "open")),
    *(Case("crash", p, "crashed", SILENT, p not in UP) for p in (*UP, "open")),
    Case("crash", "confirm", "crashed", {**SILENT, "phase": 1}, True),
    Case("refuse", "vector", "refused: unavailable", {"unavailable": 1}),
    Case("refuse", "open", "refused: policy", {"policy": 1}, True, extra={"reason": "policy"}),
    *(Case("garbage", p, "lied", {"encoding": 1}, p not in UP) for p in (*UP, "confirm", "open")),
    *(Case("replay", p, "lied", {"context": 1}, p not in UP) for p in (*UP, "confirm", "open")),
    Case("wrong-length", "vector", "lied", {"vector-size": 1}),
    Case("bad-share", "open", "lied", {}, True, True),
    Case("boost", "keys", "lied", {}, True),
    Case("nan", "keys", "refused: unavailable", {"unavailable": 1}),
    Case("other-model", "keys", "refused: context", {"context": 1}),
    Case("swap-key", "shares", "refused: signature", {"signature": 1}),
    Case("survivors", "confirm", "refused: cohort-size", {"cohort-size": 1}, True),
    Case("two-sets", "confirm", TWO_SETS, {"phase": 1, "survivors": 1}, True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.phase}")
def test_a_fault_costs_at_most_its_own_site_and_only_in_its_own_round(
    plain: Federation, tmp_path: Path, case: Case
) -> None:
    fault = {**GOOD, "round": 2, "site": "site-2", "phase": case.phase, "kind": case.kind, **case.extra}
    _, (first, second) = play(plain, tmp_path, entry(**fault))
    assert (first["survivors"], first["refusals"], first["blamed"]) == (list(LABELS), {}, [])
    left = [label for label in LABELS if case.in_sum or label != "site-2"]
    assert (second["survivors"], second["refusals"]) == (left, case.refusals)
    assert (second["attempts"], second["blamed"]) == (1, ["site-2"] if case.blamed else [])
    played = {"fault": 1, "round": 2, "attempt": 1, "site": "site-2", "happened": case.happened}
    assert read_played(tmp_path / PLAYED) == [played]


def test_a_site_that_is_late_or_crashes_has_paid_and_one_that_was_not_reached_has_not(
    private: Federation, tmp_path: Path
) -> None:
    kinds = ("drop", "late", "crash")
    before = [ledger_entries(private.sites / str(i)) for i in range(4)]
    for number, kind in enumerate(kinds):
        play(private, tmp_path / kind, entry(**{**GOOD, "site": f"site-{number + 1}", "kind": kind}))
    paid = [ledger_entries(private.sites / str(i)) - n for i, n in enumerate(before)]
    assert paid == [len(kinds) * LAST - 1, *[len(kinds) * LAST] * 3]


def test_a_false_dealer_is_named_struck_off_and_the_round_begins_again(
    private: Federation, tmp_path: Path
) -> None:
    fault = {**GOOD, "site": "site-2", "phase": "shares", "kind": "bad-share"}
    _, (first, second) = play(private, tmp_path, entry(**fault))
    left = [label for label in LABELS if label != "site-2"]
    assert (first["survivors"], first["attempts"], first["blamed"]) == (left, 2, ["site-2"])
    assert (second["survivors"], second["attempts"], second["blamed"]) == (left, 1, [])
    assert [(row["attempt"], row["happened"]) for row in read_played(tmp_path / PLAYED)] == [(1, "lied")]


def test_a_false_dealer_ends_a_run_that_is_not_private(plain: Federation, tmp_path: Path) -> None:
    fault = {**GOOD, "site": "site-2", "phase": "shares", "kind": "bad-share"}
    with pytest.raises(RunFailed, match=r"attempt \("):
        play(plain, tmp_path, entry(**fault))
    assert read_played(tmp_path / PLAYED)[0]["happened"] == "lied"


def test_more_dropouts_than_agreed_cost_an_attempt_and_not_the_round(
    plain: Federation, tmp_path: Path
) -> None:
    gone = "".join(entry(**{**GOOD, "site": f"site-{i}", "phase": "keys"}, attempt=1) for i in (1, 2, 3))
    _, (first, _) = play(plain, tmp_path, gone)
    assert (first["attempts"], first["refusals"], len(first["survivors"])) == (2, {"no-answer": 3}, 6)


def test_a_replay_without_an_earlier_answer_is_the_truth(plain: Federation, tmp_path: Path) -> None:
    _, (first, _) = play(plain, tmp_path, entry(**{**GOOD, "kind": "replay"}))
    assert len(first["survivors"]) == 6
    assert read_played(tmp_path / PLAYED)[0]["happened"] == "had nothing to lie with"


def test_two_sets_where_no_smaller_one_may_be_is_refused_at_the_first(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "sites", "training.rounds=2", "secure_aggregation.max_dropouts=0")
    _, (first, _) = play(
        federation, tmp_path / "x", entry(**{**GOOD, "phase": "confirm", "kind": "two-sets"})
    )
    assert (len(first["survivors"]), first["refusals"]) == (6, {})
    happened = read_played(tmp_path / "x" / PLAYED)[0]["happened"]
    assert happened == "one set: refused: cohort-size; another: answered"


def test_a_boosted_update_moves_the_model_no_further_than_the_clip(tmp_path: Path) -> None:
    clip = 0.05
    settings = ("training.rounds=1", f"secure_aggregation.update_clip={clip}")
    federation = Federation(tmp_path / "sites", *settings)
    honest = federation.run(tmp_path / "honest")
    fault = {**GOOD, "phase": "keys", "kind": "boost", "factor": 1e6}
    path = tmp_path / "boosted"
    boosted, _ = play(federation, path, entry(**fault))
    moved = np.sqrt(sum(float(((boosted[n] - honest[n]) ** 2).sum()) for n in honest))
    assert 0 < moved <= 2 * clip / len(LABELS) * 1.01


@pytest.mark.parametrize("setting", [IDEAL, SINGLE])
def test_sites_fail_without_the_protocol_too(tmp_path: Path, setting: str) -> None:
    federation = Federation(tmp_path / "sites", "training.rounds=2", setting)
    text = "".join(
        entry(**{**OPEN, "round": n, "site": f"site-{i}", "kind": kind})
        for n, i, kind in ((1, 1, "drop"), (1, 2, "refuse"), (2, 3, "late"), (2, 4, "crash"))
    )
    _, rows = play(federation, tmp_path / "x", text, setting)
    assert [row["survivors"] for row in rows] == [[*LABELS[2:]], [*LABELS[:2], *LABELS[4:]]]
    assert [row["refusals"] for row in rows] == [{"no-answer": 1, "unavailable": 1}, {"no-answer": 2}]
    assert [row["attempts"] for row in rows] == [None, None]


# -- the same twice ----------------------------------------------------------------------------------------------

MIXED = (
    entry(every=1, share=0.2, phase="vector", kind="drop")
    + entry(round=1, site="site-4", phase="open", kind="bad-share")
    + entry(round=2, site="site-5", phase="confirm", kind="two-sets")
    + entry(round=2, site="site-6", phase="keys", kind="garbage")
)


def history(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("seconds", "phases")} for row in rows]


def test_what_is_played_follows_from_the_list_the_seed_and_the_messages(
    plain: Federation, tmp_path: Path
) -> None:
    a, first = play(plain, tmp_path / "a", MIXED)
    b, second = play(plain, tmp_path / "b", MIXED)
    assert history(first) == history(second)
    assert same(a, b)
    played = [(tmp_path / name / PLAYED).read_bytes() for name in "ab"]
    assert played[0] == played[1] != b""
    other, third = play(plain, tmp_path / "c", MIXED, "seed=8")
    assert history(third) != history(first)
    assert not same(a, other)


# -- the report --------------------------------------------------------------------------------------------------

FOUND = PlayedFault(
    fault=3, round=2, site="<b>", phase="vector", kind="drop", happened="no answer; not in the sum"
)


def test_the_report_names_what_was_planned_and_what_happened() -> None:
    record = run_record(faults=(FOUND,))
    page = render_html(record)
    section = page[page.index('<h2 id="faults">') : page.index('<h2 id="statement">')]
    assert (
        "<td>3</td><td>2</td><td>&lt;b&gt;</td><td>vector</td><td>drop</td><td>no answer; not in" in section
    )
    assert 'id="faults"' not in render_html(run_record())


def test_a_deployment_cannot_record_faults() -> None:
    make: Callable[..., Any] = run_record
    with pytest.raises(ValueError, match="only a simulation can know"):
        make(engine="superlink", faults=(FOUND,))
