"""Counters of a coordinator for Prometheus, on loopback: sums and rounds, never a site.

Guarantees:
    No sample has a label that names a site, a node or a member, and none is about one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tacit.errors import StorageError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

HOST: Final = "127.0.0.1"
# A reason comes from outside: what is not listed counts as "other", so that nobody can fill the memory with labels.
_LISTED: Final = """
aggregate-norm aggregate-range app-answer attempt attempt-failed barred bits body budget budget-spent bundle
clip cohort cohort-size complaint config confirmations context delta duplicate encoding erased evaluation
experiment expired failed fields identity-key kept key label layout limits low-order-point malformed masked member
member-header
message-type metric-bound metrics model model-layout model-norm model-schema model-size model-values
neighbours not-a-member not-finite not-private openings order own-entry padding peer-counter phase proof
query range rate receipts revoked roster roster-epoch roster-file roster-signature round rows rules run
scaling secure-aggregation sender share signature single-update statistics strike-list survivors tag task too-soon
unavailable unknown-member update-norm variate vector-size weight
"""
REASONS: Final = frozenset(_LISTED.split())


class Metrics:
    """What one coordinator counts, in a registry of its own.

    Attributes:
        registry: for `serve_metrics`, or for a test.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry: CollectorRegistry = CollectorRegistry()
        registry = self.registry
        self._rounds = Counter("tacit_rounds", "Complete rounds.", registry=registry)
        self._attempts = Counter(
            "tacit_attempts", "Attempts at a secure sum, of complete rounds.", registry=registry
        )
        self._refusals = Counter(
            "tacit_refusals", "Refusals of sites, by code.", ["reason"], registry=registry
        )
        self._bytes = Counter(
            "tacit_bytes_up", "Bytes of updates, as many times the largest as were summed.", registry=registry
        )
        self._online = Gauge("tacit_sites_online", "Sites that the SuperLink sees.", registry=registry)
        self._epsilon = Gauge(
            "tacit_epsilon_spent",
            "Epsilon of a run so far; +Inf without a promise.",
            ["run"],
            registry=registry,
        )
        self._seconds = Histogram(
            "tacit_round_seconds",
            "Seconds of a round.",
            buckets=(0.1, 0.5, 1, 5, 10, 60, 300, 1800),
            registry=registry,
        )
        self._phase = Gauge(
            "tacit_phase_seconds", "Seconds of each phase in the last round.", ["phase"], registry=registry
        )
        self._runs = Counter("tacit_runs", "Runs that ended, by outcome.", ["outcome"], registry=registry)

    def round(self, run: str, record: Mapping[str, Any]) -> None:
        """Counts one round.

        Args:
            run: Tacit's id of the run.
            record: its line of `rounds.jsonl`; fields that are missing count as nothing.
        """
        self._rounds.inc()
        self._attempts.inc(record.get("attempts") or 1)
        for reason, count in (record.get("refusals") or {}).items():
            self._refusals.labels(reason if reason in REASONS else "other").inc(count)
        self._bytes.inc((record.get("bytes_up") or 0) * len(record.get("survivors") or ()))
        epsilon = record.get("epsilon")
        self._epsilon.labels(run).set(float("inf") if epsilon is None else epsilon)
        if "seconds" in record:
            self._seconds.observe(record["seconds"])
        for phase, seconds in (record.get("phases") or {}).items():
            self._phase.labels(phase).set(seconds)

    def online(self, num_sites: int) -> None:
        """Says how many sites are there."""
        self._online.set(num_sites)

    def ended(self, outcome: str) -> None:
        """Counts the end of a run: "finished", "failed" or "stopped"."""
        self._runs.labels(outcome).inc()


class MetricsServer:
    """Metrics that are served. Made by `serve_metrics`."""

    def __init__(self, server: Any, thread: Any) -> None:
        self._server, self._thread = server, thread
        self.port: int = server.server_port

    def close(self) -> None:
        """Ends the service. Closing twice is allowed."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(metrics: Metrics, port: int) -> MetricsServer:
    """Serves `/metrics` on loopback.

    Args:
        metrics: what is shown.
        port: 0 = any free one, see `MetricsServer.port`.

    Raises:
        StorageError: the port is taken.
    """
    from prometheus_client import start_http_server

    try:
        return MetricsServer(*start_http_server(port, HOST, metrics.registry))
    except OSError as error:
        raise StorageError(f"{HOST}:{port}: metrics cannot be served: {error.strerror or error}") from None
