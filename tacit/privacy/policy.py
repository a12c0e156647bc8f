"""What a site allows, in its own words: `policy.toml` beside its data, never sent by anybody.

Guarantees:
    A policy only tightens: each field can refuse an experiment, and none changes one.
    An experiment that a policy refuses is refused by every stricter policy too.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from tacit.config import Experiment
from tacit.data.schema import Count, Frozen, Positive
from tacit.errors import Refused
from tacit.learning import BUILT_IN, LAST_ALONE, MODEL_KEYS
from tacit.privacy.accountant import epsilon_claimed
from tacit.privacy.client_plan import ClientPlan
from tacit.toml import load_as


class SitePolicy(Frozen):
    """The policy of one data set of one site. Without a file, the defaults stand.

    Attributes:
        epsilon_ceiling: the most that may ever be spent on the data set, per record and per client: a run that
            protects clients alone counts for both (see `tacit.privacy.ledger`). With one, a run without privacy is
            refused. None = no ceiling.
        delta: the delta of that ceiling, below one over the number of records; no run may ask for more.
        min_honest: fewest vectors of honest clients in a sum that this site's update goes into.
        require_secure_aggregation: refuse an experiment without it.
        allow_single_updates: let the server see this site's update by itself, when secure aggregation is off.
        allowed_tasks: the kinds of task whose code this site has read and installed. A kind names Python code
            that is called with options from the experiment, so anything else stays refused.
        max_rounds_per_hour: rounds of training that this site answers within an hour.
        max_model_parameters: largest model.
        max_model_norm: largest Euclidean norm of a global model that is trained from.
        max_update_norm: largest Euclidean norm of an update, `secure_aggregation.update_clip`.
    """

    epsilon_ceiling: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    min_honest: Annotated[int, Field(ge=2)] = 2
    require_secure_aggregation: bool = True
    allow_single_updates: bool = False
    allowed_tasks: Annotated[tuple[str, ...], Field(strict=False)] = BUILT_IN
    max_rounds_per_hour: Count = 3600
    max_model_parameters: Count = 10_000_000
    max_model_norm: Positive = 10_000.0
    max_update_norm: Positive = 100.0

    @model_validator(mode="after")
    def _ceiling_has_delta(self) -> SitePolicy:
        if self.epsilon_ceiling is not None and self.delta is None:
            raise ValueError("epsilon_ceiling needs delta, below one over the number of records")
        return self

    @classmethod
    def load(cls, path: Path) -> SitePolicy:
        """Reads a policy file.

        Raises:
            ConfigError: one line that names the file and the key.
        """
        return load_as(cls, path)

    def check(self, experiment: Experiment) -> None:
        """Whether this site takes part in an experiment. What it has spent already is the ledger's to say.

        Raises:
            Refused: with a reason code: "task", "secure-aggregation", "single-update", "cohort",
                "update-norm", "model-size", "not-private", "budget" or "delta".
        """
        if experiment.task.kind not in self.allowed_tasks:
            raise Refused("task", f"{experiment.task.kind!r} is not among the allowed tasks")
        self._check_aggregation(experiment)
        self._check_privacy(experiment)
        if not experiment.task.is_own:
            self.check_model(fewest_parameters(experiment))

    def check_model(self, num_parameters: int) -> None:
        """Whether a model of this size is trained here. For each model received, too.

        Raises:
            Refused: "model-size".
        """
        if num_parameters > self.max_model_parameters:
            raise Refused(
                "model-size", f"{num_parameters} parameters; at most {self.max_model_parameters} are allowed"
            )

    def _check_aggregation(self, experiment: Experiment) -> None:
        secure = experiment.secure_aggregation
        if not secure.enabled or secure.engine != "protocol":
            if self.require_secure_aggregation:
                raise Refused("secure-aggregation", "this site requires it")
            if not self.allow_single_updates:
                raise Refused(
                    "single-update", "without secure aggregation the server sees this site's update"
                )
            return
        honest = experiment.cohort_size - secure.max_dropouts - secure.max_corrupt
        if honest < self.min_honest:
            raise Refused(
                "cohort", f"{honest} honest clients are sure; at least {self.min_honest} are required"
            )
        if secure.update_clip > self.max_update_norm:
            raise Refused(
                "update-norm", f"update_clip = {secure.update_clip:g} is above {self.max_update_norm:g}"
            )

    def _check_privacy(self, experiment: Experiment) -> None:
        budgets = [
            budget for budget in (experiment.privacy.record, experiment.privacy.client) if budget is not None
        ]
        if not budgets and self.epsilon_ceiling is not None:
            raise Refused("not-private", "the experiment gives no privacy guarantee")
        for budget in budgets:
            if self.epsilon_ceiling is not None and budget.epsilon > self.epsilon_ceiling:
                raise Refused("budget", f"epsilon = {budget.epsilon:g} is above {self.epsilon_ceiling:g}")
            if self.delta is not None and budget.delta > self.delta:
                raise Refused("delta", f"delta = {budget.delta:g} is above {self.delta:g}")
        if self.epsilon_ceiling is None or self.delta is None or experiment.privacy.record is not None:
            return
        if (plan := ClientPlan.of(experiment)) is not None:
            records = epsilon_claimed(plan.event().doubled().repeated(plan.debits), self.delta)
            if records > self.epsilon_ceiling:
                raise Refused(
                    "budget",
                    f"for clients alone; epsilon per record is {records:.4g}, above {self.epsilon_ceiling:g}",
                )


def fewest_parameters(experiment: Experiment) -> int:
    """What a built-in model has at least, by the sizes that its experiment asks for: known before any of it is built.

    Exact for `mlp` and `logistic` of a table's columns.
    """
    model, columns = experiment.task.model, experiment.data.columns
    known = MODEL_KEYS[model.name]
    hidden = model.hidden if "hidden" in known else ()
    if experiment.task.kind == "tabular" and columns is not None and model.name in ("mlp", "logistic"):
        widths = (len(columns.feature_names), *hidden, len(columns.classes))
        return sum((before + 1) * after for before, after in pairwise(widths))
    if model.name in LAST_ALONE:
        return model.layers * hidden[-1] ** 2
    widths = model.channels if "channels" in known else hidden
    least = sum(widths) + sum(before * after for before, after in pairwise(widths))
    return least + (model.latent * hidden[-1] if "latent" in known else 0)
