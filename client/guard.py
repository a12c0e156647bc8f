"""The site's say: permission for one release, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from tacit.encoding import STATISTICS, STATISTICS_ROUND, needs_statistics
from tacit.errors import PrivacyBudgetExceeded, Refused

if TYPE_CHECKING:
    from client.participant import Run


def check(run: Run, site: Site, run_id: str, round_number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raises `Refused` with a reason code unless this site may take part in this round.

    Guarantees:
        A site whose budget is spent refuses, in every run and after every restart.
    """
    site.policy.check(run.experiment)
    site.policy.check_model(sum(array.size for array in arrays.values()))
    is_statistics = round_number == STATISTICS_ROUND and needs_statistics(run.experiment)
    if not (is_statistics or 1 <= round_number <= run.experiment.training.rounds):
        raise Refused("round", f"round {round_number} is not one of the experiment's")
    if is_statistics != (set(arrays) == {STATISTICS}):
        raise Refused("round", "statistics are asked for in round 0 and nowhere else")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise Refused("model-values", f"array {name!r} has a value that is not finite")
    if run.plan.unit == "none":
        return
    with site.ledger() as ledger:
        releases = run.plan.releases(round_number)
        purpose = next(iter(releases))
        paid = sum(entry.run == run_id and entry.purpose == purpose for entry in ledger.entries)
        if paid >= (1 if is_statistics else run.plan.debits):
            raise PrivacyBudgetExceeded(f"all debits of this run for {purpose} are made")
        ceiling, delta = site.policy.epsilon_ceiling, site.policy.delta or run.plan.delta
        if ceiling is not None and ledger.would_exceed(releases.values(), ceiling, delta, run=run_id):
            raise PrivacyBudgetExceeded(f"one more round would exceed epsilon {ceiling} of {site.data_set!r}")
