"""One site in one run: what it trains, what it may release, and what it has paid.

    guard -> train -> constrain and encode -> (debit) -> mask

Handlers in `client/app.py` call these steps in this order; a simulation that trains a whole cohort at once calls the
same methods.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from client import guard
from client.evaluation import metric_sums
from client.journal import SiteJournal
from client.kept import Kept
from client.local import Local
from client.rate import FILE as RATE_FILE
from client.rate import count_round
from client.sessions import FolderSessions, MemorySessions, Session, Sessions
from client.site import Site, policy_stamp
from client.statistics import scaled, statistics
from client.training import Job, LocalTrainer
from tacit import config
from tacit.algorithms import KEEPING
from tacit.audit import SITE_FILE, AuditLog, NoAudit
from tacit.config import Experiment
from tacit.encoding import STATISTICS_ROUND, encoder_of
from tacit.errors import Refused
from tacit.personal import first_arrays, travelling_shapes
from tacit.privacy.discrete import add_noise
from tacit.privacy.noise import Keys, SeededKeys, Stream, SystemKeys
from tacit.privacy.plan import PrivacyPlan, unit_of
from tacit.privacy.streams import stream_of
from tacit.secagg.client import ClientMachine
from tacit.secagg.contexts import model_digest, text_digest
from tacit.secagg.encoder import Encoder
from tacit.secagg.journal import MemoryJournal
from tacit.secagg.receipt import Receipt, heads_of
from tacit.tasks import Records, Task, load_task
from tacit.tasks.summed import summed_of
from tacit.tasks.weights import Arrays, build_model, load_arrays
from tacit.update import EncodedUpdate, LocalUpdate

if TYPE_CHECKING:
    from torch import nn


class Run:
    """What all sites of a run share within one process: experiment, plan, task and the model wrapped for training."""

    def __init__(self, text: str) -> None:
        self.experiment = experiment_of(text)
        self.digest = text_digest(self.experiment.to_toml())
        self.plan = PrivacyPlan.of(self.experiment)
        self.task: Task = load_task(self.experiment)
        self.summed = summed_of(self.experiment, self.task)
        self.trainer = LocalTrainer(self.task, self.plan, self.experiment)
        self.keys = keys_for(self.experiment, self.plan)

    def encoder(self, arrays: Arrays, clip: float | None = None) -> Encoder:
        """The public encoding of this run's updates; with the clip norm in force, where it adapts."""
        return encoder_of(self.experiment, self.plan, self.task, arrays, clip)

    def model_shapes(self, arrays: Arrays) -> dict[str, tuple[int, ...]]:
        """Of the task that is installed here: the guard refuses a model that is laid out otherwise."""
        return travelling_shapes(self.experiment, self.trainer.model)

    @cached_property
    def first_own(self) -> Arrays:
        """What each site's own part of the model begins with; empty where all of it travels."""
        private = self.plan.max_grad_norm is not None
        return first_arrays(self.experiment, self.task, private=private)[1]

    @cached_property
    def plain_model(self) -> nn.Module:
        """One that nothing watches: the trainer's may be wrapped to see each record's gradient."""
        return build_model(self.task, private=self.plan.max_grad_norm is not None)

    @cached_property
    def sizes(self) -> Sequence[int]:
        """Declared sizes; see `Federation`."""
        return self.experiment.federation.sizes

    @cached_property
    def largest_rows(self) -> int:
        """The largest declared size."""
        return max(self.sizes)

    def share_stream(self, site: str, round_number: int, attempt: int) -> Stream:
        """What a site's share of the sum's noise is drawn from: one stream for each vector."""
        return Stream(self.keys.key("share", site, round_number, attempt))


def keys_for(experiment: Experiment, plan: PrivacyPlan) -> Keys:
    """The operating system's keys; seeded ones where nothing is private, or where the user asked for that.

    Guarantees:
        `--seed` never touches the noise or the Poisson draws of a private run.
    """
    if plan.unit == "none" or experiment.insecure_seeded_noise:
        return SeededKeys(experiment.seed)
    return SystemKeys()


class Participant:
    """One site's part in one run.

    Args:
        run: shared by all participants of a process.
        site: this site's folder.
        sessions: where a round's secrets wait for the next message.
    """

    def __init__(self, run: Run, site: Site, sessions: Sessions) -> None:
        self.run, self.site, self.sessions = run, site, sessions
        try:
            self.position = run.experiment.federation.labels.index(site.label)
        except ValueError:
            raise Refused("not-a-member", f"the experiment declares no site {site.label!r}") from None
        self.task, self.summed, self.scaling, self.clip = run.task, run.summed, "", ""
        self.variate: Arrays = {}  # of the server
        # Where sessions end with the process, the journal may as well.
        in_memory = isinstance(sessions, MemorySessions)
        self._journal = MemoryJournal() if in_memory else SiteJournal(site.folder, durable=site.durable)
        self.audit = NoAudit() if in_memory else AuditLog(site.folder / SITE_FILE, durable=site.durable)
        self._records: dict[str, Records] = {}
        self.known_receipts: set[str] | None = None  # those in its audit log, once they were looked for
        self._entered: str | None = None  # id of the run without privacy that the ledger knows of
        self.num_updates = self.num_clipped = 0  # stay at the site

    def look_again(self) -> None:
        """Takes the site's policy as it is now; to be called before each request.

        Raises:
            ConfigError: it cannot be read: nothing is answered until it can.
            Refused: it does not allow this experiment any more.

        Guarantees:
            A changed policy counts from the next request on.
        """
        if policy_stamp(self.site.folder) != self.site.stamp:
            site = Site.open(self.site.folder)
            guard.admit(site, self.run.experiment)
            self.site = replace(self.site, policy=site.policy, stamp=site.stamp)

    @property
    def declared_rows(self) -> int:
        """The size that this site declared."""
        sizes = self.run.sizes
        return sizes[self.position if len(sizes) > 1 else 0]

    @property
    def job(self) -> Job:
        """What is trained here."""
        return Job(self.site.label, self.records("train"), self.declared_rows)

    @property
    def weight(self) -> float:
        """This site's public aggregation weight, in (0, 1]: 1, or its declared size over the largest one."""
        if self.run.experiment.strategy.weights == "equal":
            return 1.0
        return self.declared_rows / self.run.largest_rows

    def records(self, split: str) -> Records:
        """This site's records; read once."""
        if split not in self._records:
            self._records[split] = self.task.read(self.site.data, split)
        return self._records[split]

    def scale(self, scaling: str) -> None:
        """Reads the records with the constants of a federated scaling from here on."""
        if scaling != self.scaling:
            self.task = scaled(self.run.task, scaling)
            self.summed = summed_of(self.run.experiment, self.task)
            self.scaling = scaling
            self._records.clear()

    def clip_at(self, clip: str) -> None:
        """Takes the clip norm in force from here on, as the text that travels; empty where it does not adapt.

        Raises:
            Refused: "clip", it is none, or not within what the experiment and this site allow.
        """
        guard.check_clip(self.run, self.site, clip)
        self.clip = clip

    def machine(self) -> ClientMachine:
        """This site in a new attempt of a secure sum.

        Raises:
            Refused: the roster does not have this site's key under its label.
        """
        identity, roster = self.site.identity(), self.site.roster()
        index = roster.index_of(identity.public)
        if roster.members[index].label != self.site.label:
            raise Refused("not-a-member", f"the roster calls this site {roster.members[index].label!r}")
        today = datetime.now(UTC).date()
        return ClientMachine(index, identity, roster, self._journal, today, secrets.token_bytes)

    def has_masked(self, run_id: str, round_number: int) -> bool:
        """Whether an update may have left in this round, in whatever session."""
        attempt = self._journal.runs.get(run_id)
        return attempt is not None and attempt.round == round_number and bool(attempt.ctx2)

    def see_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Refuses a server whose chain of receipts does not continue what this site has seen; see `Journal`."""
        self._journal.see_receipts(heads_of(receipts))

    def session(self) -> Session | None:
        """The round in progress, if any."""
        return self.sessions.load(self.machine)

    def guard_cohort(self, num_masking: int) -> None:
        """Raises `Refused` when a sum over so many clients is not what policy asks for."""
        guard.check_cohort(self.run, self.site, num_masking)

    def guard(self, run_id: str, round_number: int, arrays: Arrays) -> None:
        """Raises `Refused` unless policy and ledger allow one more release in this run."""
        guard.check(self.run, self.site, run_id, round_number, arrays)
        if round_number != STATISTICS_ROUND:
            guard.check_variate(self.run, self.site, self.variate)

    def count_round(self) -> None:
        """Raises `Refused`, "rate", where policy allows no further round within this hour.

        Guarantees:
            Under the secure sum only the server's own signed invitations count: nobody else can use the hour up.
        """
        count_round(self.site.folder / RATE_FILE, self.site.policy.max_rounds_per_hour)

    @property
    def variate_digest(self) -> str:
        """Of the server's control variate, in hexadecimal; empty where there is none."""
        return model_digest(self.variate).hex() if self.variate else ""

    def update(self, run_id: str, round_number: int, arrays: Arrays) -> LocalUpdate:
        """Trains from the global model; metric sums of that model come along where the plan pays for them.

        With a strategy that keeps something at the site, they are of the site's own model, and what is kept is put
        aside until the round is paid for. In round 0 it is the statistics of a federated scaling.
        """
        if round_number == STATISTICS_ROUND:
            return statistics(self.run.task, self.site, self.run.plan, self.run.keys)
        kept = self.kept(run_id) if self.run.experiment.strategy.name in KEEPING else None
        local = Local(self, round_number, arrays, kept.before(round_number) if kept else None)
        delta, keep = local.trained()
        metrics = self.metrics(round_number, local.evaluated)
        if kept is not None:
            kept.put_aside(round_number, keep)
        return LocalUpdate(delta, self.weight, metrics)

    def kept(self, run_id: str) -> Kept:
        """What this site keeps of a run from round to round."""
        return Kept(self.site.folder, run_id, self.run.digest, durable=self.site.durable)

    def encoder(self, arrays: Arrays) -> Encoder:
        """The public encoding of this run's updates, with the clip norm in force."""
        return self.run.encoder(arrays, float(self.clip) if self.clip else None)

    def encode(self, round_number: int, arrays: Arrays, update: LocalUpdate) -> EncodedUpdate:
        """Clips to the public update norm and rounds to integers.

        Rounding follows the seed, but under a promise for clients it is as secret as the noise.
        """
        run = self.run
        keys = SeededKeys(run.experiment.seed) if run.plan.client is None else run.keys
        rounding = stream_of(keys, "rounding", self.site.label, round_number)
        encoded = self.encoder(arrays).encode(update, rounding.uniform)
        self.num_updates += 1
        self.num_clipped += encoded.clipped
        return encoded

    @property
    def pays_each_attempt(self) -> bool:
        """Whether a repeated attempt is a release of its own, because its noise is drawn anew."""
        return self.run.plan.sum_noise_multiplier > 0

    def noised(
        self, encoded: EncodedUpdate, round_number: int, attempt: int, noise_share: float
    ) -> EncodedUpdate:
        """The encoded update with this client's share of the sum's noise.

        Args:
            encoded: bounded, without noise; kept for another attempt.
            round_number: of the run.
            attempt: of the round; each draws its own noise.
            noise_share: scale of the noise in integer units, as it follows from the cohort; 0 = none.

        Guarantees:
            Each noise vector has a key of its own, from the operating system in a private run.
        """
        if noise_share == 0:
            return encoded
        stream = self.run.share_stream(self.site.label, round_number, attempt)
        return EncodedUpdate(add_noise(encoded.values, noise_share, stream), encoded.clipped)

    def debit(self, run_id: str, round_number: int, attempt: int, *, again: bool = False) -> None:
        """Enters one round's releases in the ledger; returns when they are on disk.

        A run without privacy is entered with its first release only: that costs infinity, which more cannot exceed.
        So does a release whose noise follows from the seed, which the server knows.

        Args:
            run_id: Tacit's own id of the run.
            round_number: of the run.
            attempt: of the round.
            again: the same finished update has been paid for in an earlier attempt, and only the noise on the sum
                is new.

        Raises:
            Refused: budget or policy do not allow it any more; since `guard` another run may have spent it.

        Guarantees:
            The ledger is written and fsynced before the first byte of an update leaves.
            Noise that the server can draw again is entered as no noise.
        """
        if run_id != self._entered:
            self._enter(run_id, round_number, attempt, again=again)
        if self.run.experiment.strategy.name in KEEPING:
            self.kept(run_id).take_over(round_number)

    def _enter(self, run_id: str, round_number: int, attempt: int, *, again: bool) -> None:
        plan, experiment = self.run.plan, self.run.digest.hex()
        hidden = isinstance(self.run.keys, SystemKeys)
        with self.site.ledger() as ledger:
            guard.check_budget(self.run, self.site, ledger, run_id, round_number, again=again)
            for purpose, event in guard.priced(plan, round_number, again=again).items():
                unit = unit_of(purpose) if hidden else "none"
                paid = event if hidden else replace(event, noise_multiplier=0.0)
                delta = plan.delta_of(purpose)
                ledger.debit(
                    run_id, round_number, attempt, purpose, unit, paid, delta=delta, experiment=experiment
                )
        self._entered = None if plan.is_private else run_id

    def metrics(self, round_number: int, arrays: Arrays) -> dict[str, float]:
        """Metric sums of the model that came in, within their bounds; none where the plan pays for none."""
        run, noise = self.run, self.run.plan.metrics_noise_multiplier
        if noise is None:
            return {}
        model = run.plain_model if run.summed else run.trainer.model
        load_arrays(model, arrays)
        stream = Stream(run.keys.key("metrics", self.site.label, round_number))
        sums = metric_sums(model, run.task, self.records("test"), noise, stream, self.summed)
        ranges = run.encoder(arrays).metrics
        return {name: ranges[name].cut(value) for name, value in sums.items()}


@lru_cache(maxsize=4)
def experiment_of(text: str) -> Experiment:
    """The experiment that this text spells: parsed once, however many sites a process plays."""
    return config.loads(text, source="experiment")


@lru_cache(maxsize=4)
def run_of(text: str) -> Run:
    """The run that this experiment text describes."""
    return Run(text)


@lru_cache(maxsize=4096)
def participant_of(text: str, folder: Path, keep_in_memory: bool) -> Participant:
    """The participant of one site folder in one run; records and wrapped model are kept for the next message."""
    site = Site.open(folder)
    guard.admit(site, experiment_of(text))  # before the code that it names is imported
    return Participant(run_of(text), site, MemorySessions() if keep_in_memory else FolderSessions(folder))
