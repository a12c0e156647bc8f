"""Which of Flower's strategies a secure sum can serve: those that need nothing but the weighted mean.

Given one combined reply the others would run without complaint and be wrong: a median of one model, a distance
between one, noise calibrated for many.
"""

from __future__ import annotations

from typing import Final

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from strategies.buffered import FedBuff
from strategies.scaffold import Scaffold
from tacit.algorithms import SINGLE_UPDATES
from tacit.errors import ConfigError

MEAN_ONLY: Final = (
    flower.FedAvg,
    flower.FedProx,
    flower.FedAvgM,
    flower.FedAdagrad,
    flower.FedAdam,
    flower.FedYogi,
)

OWN: Final = (FedBuff, Scaffold)  # ours, which need nothing but the mean either

REASONS: Final = {
    "Krum": SINGLE_UPDATES["krum"],
    "MultiKrum": SINGLE_UPDATES["multikrum"],
    "Bulyan": "compares single updates with each other",
    "FedMedian": SINGLE_UPDATES["fedmedian"],
    "FedTrimmedAvg": SINGLE_UPDATES["fedtrimmedavg"],
    "QFedAvg": "weighs each update by that client's own loss",
    "FedXgbBagging": "appends trees, which have no mean",
    "FedXgbCyclic": "passes one client's trees on to the next",
    "DifferentialPrivacyServerSideFixedClipping": "clips single updates; see [privacy.client]",
    "DifferentialPrivacyServerSideAdaptiveClipping": "clips single updates; see [privacy.client]",
    "DifferentialPrivacyClientSideFixedClipping": "counts single replies to calibrate its noise; see [privacy.client]",
    "DifferentialPrivacyClientSideAdaptiveClipping": "reads a clipping bit of each reply; see [privacy.client]",
}


def check_mean_only(strategy: Strategy) -> None:
    """Refuses a strategy that needs more than the mean, or of which that is not known.

    Raises:
        ConfigError: names the class and the reason.
    """
    kind = type(strategy)
    for known in kind.__mro__:
        if known.__name__ in REASONS and known.__module__.startswith("flwr."):
            raise ConfigError(f"{kind.__name__} {REASONS[known.__name__]}", key="strategy")
    for known in (*MEAN_ONLY, *OWN):
        if kind is known or (issubclass(kind, known) and kind.aggregate_train is known.aggregate_train):
            return
    raise ConfigError(
        f"it is not known that {kind.__name__} needs nothing but the mean; say mean_only=True if it does",
        key="strategy",
    )
