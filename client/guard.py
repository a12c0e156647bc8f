"""The site's say: permission for one release, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.site import Site
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
    if not 1 <= round_number <= run.experiment.training.rounds:
        raise Refused("round", f"round {round_number} is not one of the experiment's")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise Refused("model-values", f"array {name!r} has a value that is not finite")
    if run.plan.unit == "none":
        return
    with site.ledger() as ledger:
        event = run.plan.round_event()
        paid = [e for e in ledger.entries if e.run == run_id and e.purpose == "training"]
        if len(paid) >= run.plan.debits:
            raise PrivacyBudgetExceeded(f"all {run.plan.debits} debits of this run are made")
        ceiling, delta = site.policy.epsilon_ceiling, site.policy.delta or run.plan.delta
        if ceiling is not None and ledger.would_exceed(event, ceiling, delta, run=run_id):
            raise PrivacyBudgetExceeded(f"one more round would exceed epsilon {ceiling} of {site.data_set!r}")
