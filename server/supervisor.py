"""Keeps a federation's server going: Flower's programs alive, its nodes registered, the queue of runs worked off.

What is worth knowing is on disk (`server.runs`, `server.state`), so that a server that is started anew, for whatever
reason, does what is left to do. Flower cannot resume a run and takes a minute to see that one has died. So a run of
ours is a row of Flower runs, each of which goes on after the last complete round of the one before; and that a
`ServerApp` has died is seen at once: the lock of its run's folder is free.

Guarantees:
    A `ServerApp` or SuperLink that ends, killed or by itself, is started again, and no complete round is lost.
    Two `ServerApp`s never work on one run.
    A run that cannot go on, whatever is wrong with it or its folder, does not keep the others from theirs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from server import bundle
from server.experiments import are_enough
from server.flower_wire import Control, load_key
from server.following import round_text
from server.runs import Queue, Run, outcome_text
from server.state import is_worked_on, read_rounds, starts_of
from server.superlink import EXECUTOR, ProgramEnded, SuperLink, Tls
from tacit import config
from tacit.config import Experiment
from tacit.durable import usable, write_file
from tacit.errors import RunFailed, StorageError, TacitError

POLL_SECONDS: Final = 0.2
NODES_SECONDS: Final = 1.0  # between two looks at who is there, while a run waits for it; else
LAZY_SECONDS: Final = 5.0
START_SECONDS: Final = 120.0  # a ServerApp imports torch before it takes its lock
LEAVE_SECONDS: Final = 5.0
ALONE_SECONDS: Final = 60.0  # that a run is left alone whose folder takes no word of its end
GRACE_SECONDS: Final = 30.0  # for the last sites, when enough are there
PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
MOST_DEATHS: Final = len(PAUSES)  # in a row, without a new round


class Members(Protocol):
    """Who takes part; asked again and again, because it may change at any time."""

    def nodes(self) -> Mapping[str, Path]:
        """The public keys of the nodes that may connect, files by label."""
        ...

    def epoch(self) -> bytes:
        """What runs are to be made under; another one begins a run's `ServerApp` anew. Empty: they have to wait."""
        ...

    def missing(self) -> str:
        """What they wait for then."""
        ...


class Watch:
    """Is told what happens. This one says lines, and nothing of the rest."""

    def say(self, text: str) -> None:
        """A line for whoever watches the server."""
        print(text, flush=True)

    def serving(self, works: bool) -> None:
        """Whether sites can be served now."""

    def online(self, num_sites: int) -> None:
        """How many sites are there."""

    def begins(self, run: str) -> None:
        """A run begins, or goes on."""

    def round(self, run: str, record: Mapping[str, Any]) -> None:
        """A round is complete."""

    def write_report(self, run: Run, outcome: str) -> None:
        """A run that had begun is about to end, and its report is due; `outcome` in the words of a record."""

    def ended(self, run: str, outcome: str) -> None:
        """A run has ended."""


class ServerFailed(RunFailed):
    """What all runs need is not there any more: the server ends."""


class Supervisor:
    """One server, for as long as `run` runs.

    Args:
        state: its folder.
        federation: folder with the roster and this server's key.
        tls: of the SuperLink.
        members: who takes part.
        port: of the SuperLink, on loopback.
        watch: is told.
    """

    def __init__(
        self,
        state: Path,
        federation: Path,
        *,
        tls: Tls,
        members: Members,
        port: int = 0,
        watch: Watch | None = None,
    ) -> None:
        self.queue = Queue(state / "runs")
        self._current, self._nodes_file = state / "current", state / "flower" / "nodes.json"
        self.link = SuperLink(
            state / "flower",
            port=port,
            tls=tls,
            variables={
                "TACIT_STATE": str(self._current),
                "TACIT_FEDERATION": str(federation),
                "TACIT_NODES": str(self._nodes_file),
            },
            patience=LEAVE_SECONDS + 5,
            on_listening=self._end_leftovers,
        )
        self._members, self._watch = members, watch or Watch()
        self._deaths = Deaths()
        self._online: frozenset[str] = frozenset()
        self._next_look = 0.0
        self._waits: dict[str, float] = {}
        self._registered: dict[str, bytes] = {}
        self._complaints: set[str] = set()
        self._alone: dict[str, float] = {}  # id of a run -> until when it is left alone

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Works until `until` says so; a `KeyboardInterrupt` ends it at any point, and no process is left."""
        ends = 0
        while not until():
            begun = time.monotonic()
            try:
                with self.link, Control(self.link) as control:
                    self._watch.serving(True)
                    while not until():
                        self._turn(control)
                        time.sleep(POLL_SECONDS)
            except ProgramEnded as error:
                ends = 0 if time.monotonic() - begun > 60 else ends + 1
                pause = PAUSES[min(ends, len(PAUSES) - 1)]
                self._watch.say(f"{error}\nstarted again in {pause:g} s")
                self._watch.serving(False)
                time.sleep(pause)

    def _turn(self, control: Control) -> None:
        """What there is to do now: one look around, or one run."""
        self.link.check()
        self._look(control)
        for run, status in self.queue.known():
            if status is None:
                self._complain(f"run {run.id[:8]}: status.json is damaged; it is left alone")
            elif not status.has_ended and run.is_asked_to_stop and run.id not in self._left_alone():
                self._end(run, "stopped", "by tacit stop")
        chosen = self.queue.next(self._left_alone())
        if chosen is None:
            return
        try:
            if self._is_ready(chosen):
                self._carry_out(chosen, control)
        except (ProgramEnded, ServerFailed):
            raise
        except TacitError as error:  # damaged files of this run, or what Flower refuses of it
            try:
                self._end_serverapp(control, chosen)
            except ProgramEnded:
                raise
            except RunFailed as refused:
                self._complain(f"run {chosen.id[:8]}: its ServerApp cannot be ended: {refused}")
            self._end(chosen, "failed", str(error))

    def _left_alone(self) -> Set[str]:
        """Ids of the runs whose end could not be written a moment ago."""
        self._alone = {run: until for run, until in self._alone.items() if until > time.monotonic()}
        return self._alone.keys()

    def _complain(self, text: str) -> None:
        """Says what has to be mended by somebody, once."""
        if text not in self._complaints:
            self._complaints.add(text)
            self._watch.say(text)

    # -- nodes ----------------------------------------------------------------------------------------------------

    def _look(self, control: Control) -> None:
        """Registers the nodes of today's members, takes others out, and sees who is connected."""
        if time.monotonic() < self._next_look:
            return
        with self._needed():
            files = self._members.nodes()
        try:
            self._register(files, control)
        except ProgramEnded:
            raise
        except TacitError as error:  # of one node's key, perhaps; the others stay as they are
            self._complain(f"nodes are not registered as the roster says: {error}")
            self._next_look = time.monotonic() + LAZY_SECONDS

    def _register(self, files: Mapping[str, Path], control: Control) -> None:
        wanted = {label: load_key(path) for label, path in files.items()}
        known = {node.key: node for node in control.nodes()}
        for key, node in known.items():
            if key not in wanted.values():
                control.unregister(node.id)
        for label, key in wanted.items():
            if key not in known:
                control.register(key, label)
        if any(key not in known for key in wanted.values()):
            known = {node.key: node for node in control.nodes()}
        if wanted != self._registered:
            ids = {label: known[key].id for label, key in wanted.items()}
            write_file(self._nodes_file, json.dumps(ids).encode())
            self._registered = wanted
        online = frozenset(label for label, key in wanted.items() if known[key].online)
        for label in sorted(online ^ self._online):
            self._watch.say(f"{label} is {'here' if label in online else 'away'}")
        self._watch.online(len(online))
        pause = NODES_SECONDS if self._waits else LAZY_SECONDS
        self._online, self._next_look = online, time.monotonic() + pause

    def _epoch(self) -> bytes:
        with self._needed():
            return self._members.epoch()

    @contextmanager
    def _needed(self) -> Iterator[None]:
        """Around what no run can do without."""
        try:
            yield
        except TacitError as error:
            raise ServerFailed(str(error)) from None

    def _is_ready(self, run: Run) -> bool:
        """Whether it makes sense to begin with it now; if not, its status says what it waits for."""
        if run.outcome is not None:
            return True
        if not self._epoch():
            run.set(run.status.state, f"waits for {self._members.missing()}")
            return False
        try:
            experiment = config.loads(run.experiment, source=str(run.folder / "experiment.toml"))
        except TacitError as error:  # another version's, or damaged
            self._end(run, "failed", str(error))
            return False
        if run.id not in self._waits:
            self._waits[run.id], self._next_look = time.monotonic(), 0.0
        away, are_enough = self._away(experiment)
        waited = time.monotonic() - self._waits[run.id]
        if not away or (waited > GRACE_SECONDS and are_enough):
            del self._waits[run.id]
            return True
        run.set(run.status.state, f"waits for {away}")
        return False

    def _away(self, experiment: Experiment) -> tuple[str, bool]:
        """Who is not connected, in words, and whether the others are enough for a round."""
        labels = {site.label for site in experiment.federation.sites}
        away = sorted(labels - self._online)
        text = f"{len(away)} of {len(labels)} sites: {', '.join(away[:10])}" if away else ""
        return text, are_enough(experiment, self._online)

    # -- runs -----------------------------------------------------------------------------------------------------

    def _carry_out(self, run: Run, control: Control) -> None:
        """Has a `ServerApp` work on a run until it ends, is stopped, or dies."""
        if run.outcome is None and not self._works_on(run, control):
            return
        outcome = run.outcome
        if outcome is None:
            self._died(run)
        else:
            self._end_serverapp(control, run)
            self._end(run, *outcome)

    def _works_on(self, run: Run, control: Control) -> bool:
        """Follows a new `ServerApp` as long as there is something to follow; whether its end says something."""
        self._end_serverapp(control, run)
        run.set("running")
        self._watch.begins(run.id)
        epoch, seen, told = self._epoch(), starts_of(run.folder), run.num_rounds
        flower = self._submit(run, control)
        deadline, experiment = time.monotonic() + START_SECONDS, config.loads(run.experiment)
        while self._is_alive(run, seen, deadline, flower, control):
            time.sleep(POLL_SECONDS)
            self.link.check()
            self._look(control)
            told = self._tell_rounds(run, told)
            away, are_enough = self._away(experiment)
            run.set("running", "" if are_enough else f"waits for {away}")
            if run.is_asked_to_stop:
                self._end_serverapp(control, run)
                self._end(run, "stopped", "by tacit stop")
                return False
            if self._epoch() != epoch:
                self._end_serverapp(control, run)
                run.log("goes on under another epoch of the roster")
                return False
        self._tell_rounds(run, told)
        return True

    def _tell_rounds(self, run: Run, told: int) -> int:
        """Tells of rounds that are new; how many are told of now."""
        records = read_rounds(run.folder / "rounds.jsonl")
        for record in records[told:]:
            self._watch.round(run.id, record)
            self._watch.say(f"run {run.id[:8]}: {round_text(record)}")
        return len(records)

    def _end(self, run: Run, state: str, reason: str) -> None:
        try:
            if run.has_begun:
                run.set(run.status.state, "its report is being written")
                self._watch.write_report(run, outcome_text(state, reason))
            run.set(state, reason)
        except StorageError as error:  # of a full disk, say
            self._alone[run.id] = time.monotonic() + ALONE_SECONDS
            self._complain(f"run {run.id[:8]} cannot be ended, and is left alone: {error}")
            return
        self._watch.say(f"run {run.id[:8]} {state}" + ("" if reason in ("", state) else f": {reason}"))
        self._watch.ended(run.id, state)

    def _submit(self, run: Run, control: Control) -> int:
        run.forget_outcome()
        link = self._current.with_name(".current")
        with usable(link):
            link.unlink(missing_ok=True)
            link.symlink_to(run.folder.resolve())
            link.replace(self._current)
        flower = control.start(bundle.write(self.link.home / "bundle"), run.experiment)
        run.log(f"Flower's run {flower}")
        return flower

    def _is_alive(self, run: Run, before: int, deadline: float, flower: int, control: Control) -> bool:
        """Whether there is still something to wait for.

        A run's lock is looked at only after its `ServerApp` has taken it: looking takes it, for a moment.
        """
        if run.outcome is not None:
            return False
        if starts_of(run.folder) > before:
            return is_worked_on(run.folder)
        return time.monotonic() < deadline and flower in control.unfinished()

    def _died(self, run: Run) -> None:
        """A `ServerApp` ended without a word: it begins again, unless it keeps doing that."""
        count = self._deaths.count(run)
        tail = self.link.log_tail(EXECUTOR)
        if count >= MOST_DEATHS:
            self._end(run, "failed", f"the ServerApp ended {count} times without a complete round\n{tail}")
            return
        run.log(f"the ServerApp ended without a result; it goes on after round {run.num_rounds}\n{tail}")
        self._watch.say(f"run {run.id}: the ServerApp ended; it goes on after round {run.num_rounds}")
        time.sleep(PAUSES[count - 1])

    def _end_serverapp(self, control: Control, run: Run) -> None:
        """Ends all runs of Flower's, and the processes that do not leave by themselves."""
        for flower in control.unfinished():
            control.stop(flower)
        deadline = time.monotonic() + LEAVE_SECONDS
        while is_worked_on(run.folder):
            if time.monotonic() > deadline:
                self.link.start_executor()
                return
            time.sleep(POLL_SECONDS / 4)

    def _end_leftovers(self, link: SuperLink) -> None:
        """Runs that a SuperLink before this one has left in its database: nobody executes them any more."""
        with Control(link) as control:
            for flower in control.unfinished():
                control.stop(flower)


class Deaths:
    """How often in a row each run's `ServerApp` has ended without a new round."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}

    def count(self, run: Run) -> int:
        """One more; starts again from 1 when there are more rounds than the last time."""
        rounds, count = self._seen.get(run.id, (-1, 0))
        count = count + 1 if run.num_rounds == rounds else 1
        self._seen[run.id] = run.num_rounds, count
        return count
