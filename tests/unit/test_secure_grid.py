"""The secure sum as a grid: exact against the plain mean, through drop-outs, refusals and garbage, in every engine."""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from client.participant import participant_of
from client.site import Site
from client.training import Job, LocalTrainer
from server.state import RunState, read_rounds
from simulations.cohort import train_cohort
from simulations.local_grid import LocalGrid
from strategies.rounds import Arrays, Progress
from tacit.errors import RunFailed
from tacit.privacy.accountant import Event
from tests.unit.small_federation import (
    PRIVATE,
    Federation,
    Misbehaving,
    is_step,
    ledger_entries,
    opened_sums,
    refusal,
    same,
)

ONE_ROUND = "training.rounds=1"
METRICS = ("evaluation.metrics=true",)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Federation]:
    """Federations by their settings, each made once: n = 6, D = 2, c = 1, so 4 must take part and T is 4."""
    made: dict[tuple[str, ...], Federation] = {}

    def federation(*settings: str) -> Federation:
        if settings not in made:
            made[settings] = Federation(tmp_path_factory.mktemp("sites"), *settings)
        return made[settings]

    return federation


@pytest.fixture
def private(tmp_path: Path) -> Federation:
    """With ledgers of its own."""
    return Federation(tmp_path / "sites", ONE_ROUND, PRIVATE)


def last_row(folder: Path) -> dict[str, Any]:
    return read_rounds(folder / "rounds.jsonl")[-1]


# -- the sum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["equal", "declared"])
def test_the_mean_is_the_plain_weighted_mean_to_the_encoding_step(
    make: Callable[..., Federation], tmp_path: Path, weights: str
) -> None:
    settings = (ONE_ROUND, f"strategy.weights={weights}", *METRICS)
    secure, plain = make(*settings), make(*settings, "secure_aggregation.enabled=false")
    a, b = secure.run(tmp_path / "secure"), plain.run(tmp_path / "plain")
    size = sum(array.size for array in a.values())
    settings_of = secure.experiment.secure_aggregation
    unit = settings_of.update_clip / (2**settings_of.precision_bits - size**0.5)
    rows = [site.rows for site in secure.experiment.federation.sites]
    total = 6 if weights == "equal" else sum(rows) / max(rows)
    # Each of the six vectors is at most one unit off in each coordinate, weights by half a unit of 2**-16.
    bound = 6 * unit / total + 1e-5
    assert not same(a, b)
    assert max(np.abs(a[name] - b[name]).max() for name in a) <= bound
    moved = max(np.abs(a[name] - secure.initial()[name]).max() for name in a)
    assert moved > 20 * bound
    for name, value in last_row(tmp_path / "plain")["metrics"].items():
        assert last_row(tmp_path / "secure")["metrics"][name] == pytest.approx(value, abs=1e-3)


def test_a_metric_is_over_the_records_of_all_sites_whatever_their_weights(
    make: Callable[..., Federation], tmp_path: Path
) -> None:
    found = []
    for weights in ("equal", "declared"):
        settings = (ONE_ROUND, f"strategy.weights={weights}", *METRICS)
        make(*settings, "secure_aggregation.enabled=false").run(tmp_path / weights)
        found.append(last_row(tmp_path / weights)["metrics"])
    assert found[0] == pytest.approx(found[1], abs=1e-9)


ENGINES: dict[str, tuple[tuple[str, ...], Any]] = {
    "ideal, over messages": (("secure_aggregation.engine=ideal",), None),
    "ideal, a whole cohort": (("secure_aggregation.engine=ideal",), train_cohort),
}
SEEDED = ("insecure_seeded_noise=true", PRIVATE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("noise", [(), SEEDED], ids=["not private", "seeded noise"])
def test_protocol_and_ideal_sum_give_bit_identical_models(
    make: Callable[..., Federation], tmp_path: Path, engine: str, noise: tuple[str, ...]
) -> None:
    settings, executor = ENGINES[engine]
    paid = ("privacy.record.metrics_share=0.1",) if noise else ()
    common = (*noise, *paid, *METRICS, "strategy.weights=declared")
    protocol, ideal = make(*common), make(*common, *settings)
    assert same(protocol.run(tmp_path / "protocol"), ideal.run(tmp_path / "ideal", executor=executor))
    rows = [read_rounds(tmp_path / name / "rounds.jsonl") for name in ("protocol", "ideal")]
    for a, b in zip(*rows, strict=True):
        for key in ("cohort", "survivors", "refusals", "metrics", "bits", "threshold", "epsilon"):
            assert a[key] == b[key], key
        assert (a["num_clipped"], b["num_clipped"]) == (None, 0)
        # Shares, openings and signatures; and the header of the array that the vector travels in.
        assert 0 < a["bytes_up"] - b["bytes_up"] < 250 * 6 + 1200


@pytest.mark.parametrize("engine", ENGINES)
def test_an_update_longer_than_the_clip_is_cut_alike_and_counted(
    make: Callable[..., Federation], tmp_path: Path, engine: str
) -> None:
    settings, executor = ENGINES[engine]
    tight = (ONE_ROUND, "secure_aggregation.update_clip=0.05", "training.learning_rate=5.0")
    a = make(*tight).run(tmp_path / "protocol")
    b = make(*tight, *settings).run(tmp_path / "ideal", executor=executor)
    assert same(a, b)
    assert last_row(tmp_path / "ideal")["num_clipped"] == 6
    initial = make(*tight).initial()
    assert sum(float(((a[k] - initial[k]) ** 2).sum()) for k in a) ** 0.5 <= 0.05 + 1e-6


# -- drop-outs ---------------------------------------------------------------------------------------------------


def failing(step: str, sites: set[int], times: int = 10**6) -> Misbehaving:
    """Sites that crash at a step, the first so many times."""
    left = dict.fromkeys(sites, times)

    def what(message: Message, real: Any, site: int) -> Message | None:
        if is_step(message, step) and left.get(site, 0) > 0:
            left[site] -= 1
            raise RuntimeError("gone")
        return None

    return Misbehaving(what)


def reference(federation: Federation, folder: Path, sites: set[int]) -> Arrays:
    """The ideal sum over exactly these sites."""

    def absent(message: Message, real: Any, site: int) -> Message | None:
        return refusal(message, "absent") if is_step(message, "ideal") and site not in sites else None

    return federation.run(folder, app=Misbehaving(absent))


@pytest.mark.parametrize("sites", [{3}, {0, 5}], ids=["one", "two"])
@pytest.mark.parametrize("step", ["tacit0", "tacit1", "tacit2", "tacit3", "tacit4"])
@pytest.mark.parametrize("how", ["crash", "refusal"])
def test_A5_drop_outs_within_the_allowance_leave_the_exact_sum_in_one_attempt(
    make: Callable[..., Federation], tmp_path: Path, step: str, sites: set[int], how: str
) -> None:
    """Of the others, or of all where the vectors were sent before."""
    federation, ideal = make(ONE_ROUND), make(ONE_ROUND, "secure_aggregation.engine=ideal")
    refusing = Misbehaving(
        lambda m, real, site: refusal(m, "busy") if is_step(m, step) and site in sites else None
    )
    app = failing(step, sites) if how == "crash" else refusing
    with opened_sums() as opened:
        model = federation.run(tmp_path / "run", app=app)
    others = set(range(6)) - (sites if step in ("tacit0", "tacit1", "tacit2") else set())
    assert opened == [tuple(sorted(others))]
    assert same(model, reference(ideal, tmp_path / "ideal", others))
    assert last_row(tmp_path / "run")["survivors"] == [federation.labels[i] for i in sorted(others)]
    assert sum(kind == "train.tacit0" and site == 1 for site, kind in app.asked) == 1
    reason = "busy" if how == "refusal" else "RuntimeError: gone"
    [(found, count)] = last_row(tmp_path / "run")["refusals"].items()
    assert found.startswith(reason)
    assert count == len(sites)


@pytest.mark.parametrize("step", ["tacit0", "tacit1", "tacit2", "tacit3", "tacit4"])
def test_more_drop_outs_than_allowed_end_the_run_with_the_counts_by_reason(
    make: Callable[..., Federation], tmp_path: Path, step: str
) -> None:
    def what(message: Message, real: Any, site: int) -> Message | None:
        if not is_step(message, step) or site > 2:
            return None
        return refusal(message, "budget-spent" if site else "range")

    with opened_sums() as opened, pytest.raises(RunFailed) as failure:
        make(ONE_ROUND).run(tmp_path / "run", app=Misbehaving(what))
    assert opened == []
    assert "no sum over at least 4 of 6 sites in 3 attempts" in str(failure.value)
    # Over all attempts; an update without privacy that was sent once is not sent again.
    assert re.search(r"budget-spent \(\d+\).*range \(\d+\)", str(failure.value))


def test_no_sum_is_over_fewer_than_n_minus_D_however_the_sites_vanish(
    make: Callable[..., Federation], tmp_path: Path
) -> None:
    """One vanishes before it has sent keys, two with their keys sent: each alone would be allowed.

    With privacy, where an update that is paid for is sent again in the next attempt.
    """

    def what(message: Message, real: Any, site: int) -> Message | None:
        early = is_step(message, "tacit0") and site == 2
        late = is_step(message, "tacit2") and site in (0, 1)
        return refusal(message, "gone") if early or late else None

    app = Misbehaving(what)
    with opened_sums() as opened, pytest.raises(RunFailed):
        make(ONE_ROUND, PRIVATE).run(tmp_path / "run", app=app)
    assert opened == []
    # Five in the first and the third attempt; the second, of three, ends before anybody deals, which they would refuse.
    assert [kind for _, kind in app.asked].count("train.tacit1") == 10


def test_a_site_that_was_only_late_is_asked_again(make: Callable[..., Federation], tmp_path: Path) -> None:
    app = failing("tacit0", {0, 1, 2}, times=1)
    with opened_sums() as opened:
        make(ONE_ROUND).run(tmp_path / "run", app=app)
    assert opened == [(0, 1, 2, 3, 4, 5)]


def test_a_site_that_never_answers_costs_a_deadline_and_no_more(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "sites", ONE_ROUND, "secure_aggregation.deadline_seconds=0.3")

    class Silent(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            answers = super().pull_messages(message_ids)
            return [
                a for a in answers if a.metadata.src_node_id != federation.node(3) or not is_step(a, "tacit2")
            ]

    with opened_sums() as opened:
        federation.run(tmp_path / "run", grid=Silent)
    assert opened == [(0, 1, 2, 4, 5)]
    assert 0.3 <= last_row(tmp_path / "run")["seconds"] < 30  # 0.4 when quiet; a default deadline is 600


# -- what is paid ------------------------------------------------------------------------------------------------


def test_a_second_attempt_sends_the_same_update_and_costs_nothing(
    private: Federation, tmp_path: Path
) -> None:
    encoded: dict[int, list[bytes]] = {}
    vanishing = {0, 1, 2}  # so that too few confirm, with all vectors sent

    def note(message: Message, real: Any, site: int) -> Message | None:
        if is_step(message, "tacit2"):
            session = participant_of(private.experiment.to_toml(), private.sites / str(site), True).session()
            assert session is not None
            encoded.setdefault(site, []).append(session.encoded.values.tobytes())
        if is_step(message, "tacit3") and site in vanishing:
            vanishing.discard(site)
            raise RuntimeError("gone")
        return None

    private.run(tmp_path / "run", app=Misbehaving(note))
    assert all(len(vectors) == 2 and len(set(vectors)) == 1 for vectors in encoded.values())
    assert [ledger_entries(private.sites / str(i)) for i in range(6)] == [1] * 6


def test_a_server_that_is_started_again_gets_the_same_updates_and_costs_nothing(
    private: Federation, tmp_path: Path
) -> None:
    """With sessions on the sites' disks, as a stock Flower node has them."""

    class OnDisk(LocalGrid):
        def context(self, node: int) -> Context:
            context = super().context(node)
            context.node_config["sessions"] = "folder"
            return context

    class StopsOnce(RunState):
        def save(self, progress: Progress, record: Any) -> None:
            if record is not None and self.starts == 1:
                raise InterruptedError
            super().save(progress, record)

    first: list[Arrays] = []
    for _ in range(2):
        with private.rounds(tmp_path / "run", grid=OnDisk, state=StopsOnce) as rounds:
            real = rounds.aggregate

            def noting(number: int, replies: Any, real: Any = real) -> Any:
                arrays, sums = real(number, replies)
                first.append(arrays)
                return arrays, sums

            rounds.aggregate = noting  # type: ignore[method-assign]
            with suppress(InterruptedError):
                rounds.run(private.initial())
    assert len(first) == 2
    assert same(first[0], first[1]), "noise that was drawn anew would be a second release"
    assert [ledger_entries(private.sites / str(i)) for i in range(6)] == [1] * 6


def spend(federation: Federation, sites: Iterable[int]) -> None:
    """A ceiling of the run's own epsilon, and an earlier run that has used up most of it."""
    for site in sites:
        policy = federation.sites / str(site) / "policy.toml"
        policy.write_text(f"epsilon_ceiling = 20.0\ndelta = 1e-5\n{policy.read_text()}")
        with Site.open(policy.parent).ledger() as ledger:
            ledger.debit("earlier", 1, 1, "training", "record", Event("gaussian", 0.2), delta=1e-5)


def test_sites_whose_budget_is_spent_refuse_and_the_run_goes_on(private: Federation, tmp_path: Path) -> None:
    spend(private, (1, 4))
    private.run(tmp_path / "run")
    assert last_row(tmp_path / "run")["refusals"] == {"budget-spent": 2}
    assert last_row(tmp_path / "run")["survivors"] == [private.labels[i] for i in (0, 2, 3, 5)]
    assert [ledger_entries(private.sites / str(i)) for i in range(6)] == [1] * 6


def test_too_many_spent_budgets_end_the_run_and_cost_nobody_anything(
    private: Federation, tmp_path: Path
) -> None:
    spend(private, (1, 3, 4))
    with pytest.raises(RunFailed, match=r"sites refused: budget-spent \(3\)"):
        private.run(tmp_path / "run")
    assert [ledger_entries(private.sites / str(i)) for i in range(6)] == [0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize("executor", [None, train_cohort], ids=["over messages", "a whole cohort"])
def test_spent_budgets_under_the_ideal_sum(tmp_path: Path, executor: Any) -> None:
    federation = Federation(tmp_path / "sites", ONE_ROUND, PRIVATE, "secure_aggregation.engine=ideal")
    spend(federation, (1, 4))
    federation.run(tmp_path / "run", executor=executor)
    assert last_row(tmp_path / "run")["refusals"] == {"budget-spent": 2}
    spend(federation, (0,))
    with pytest.raises(RunFailed, match=r"only 3 of 6 sites took part; sites refused: budget-spent \(3\)"):
        federation.run(tmp_path / "again", executor=executor)


def test_the_cohort_hook_trains_as_often_as_messages_do(
    make: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []
    real = LocalTrainer.train

    def noting(self: LocalTrainer, arrays: Any, job: Job, round_number: int, keys: Any) -> Any:
        trained.append((job.site, round_number))
        return real(self, arrays, job, round_number, keys)

    monkeypatch.setattr(LocalTrainer, "train", noting)
    federation = make("secure_aggregation.engine=ideal", "simulation.executor=serial")
    app = Misbehaving(lambda message, real, site: None)
    federation.run(tmp_path / "run", executor=train_cohort, app=app)
    assert trained == [(label, number) for number in (1, 2, 3) for label in federation.labels]
    assert {kind for _, kind in app.asked} == {"query.tacit"}, "no message but to find the members"


def test_one_site_that_crashes_in_the_cohort_hook_is_a_drop_out_as_it_is_over_messages(
    make: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make(ONE_ROUND, "secure_aggregation.engine=ideal", "simulation.executor=serial")
    real = LocalTrainer.train

    def crashing(self: LocalTrainer, arrays: Any, job: Job, round_number: int, keys: Any) -> Any:
        if job.site == federation.labels[4]:
            raise RuntimeError("a layer of somebody's own")
        return real(self, arrays, job, round_number, keys)

    monkeypatch.setattr(LocalTrainer, "train", crashing)
    models = []
    for name, executor in (("messages", None), ("cohort", train_cohort)):
        models.append(federation.run(tmp_path / name, executor=executor))
        assert len(last_row(tmp_path / name)["survivors"]) == 5
        assert last_row(tmp_path / name)["refusals"] == {"failed": 1}
    assert same(*models)
