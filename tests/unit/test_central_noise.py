"""A trusted server adds the noise of the plan to each sum before anything of it is used."""

import numpy as np

from tacit import config
from tacit.privacy.central import CentralNoise, NoNoise
from tacit.privacy.noise import SeededKeys, SystemKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.update import Aggregate

SITES = "".join(f'[[federation.sites]]\nlabel = "s{i}"\nrows = 50\n' for i in range(20))
CLIENT = '[privacy.client]\nepsilon = 2.0\ndelta = 1e-3\nnoise = "central"\n'


def noise_of(text: str) -> NoNoise:
    experiment = config.loads(f'name = "central"\n{text}\n{SITES}')
    return CentralNoise.of(experiment, PrivacyPlan.of(experiment))


def test_the_exact_sum_is_in_nothing_that_a_server_uses() -> None:
    central = noise_of(CLIENT)
    assert isinstance(central, CentralNoise) and isinstance(central.keys, SystemKeys)
    total = Aggregate(np.arange(20_000, dtype=np.int64), 20)
    noised = [central.added(total, 1).total for _ in range(2)]
    noise = [one.values - total.values for one in noised]
    assert noised[0].num_clients == 20 and (noise[0] != noise[1]).any()
    for one in noise:
        assert abs(one.std() / central.std - 1) < 5 / np.sqrt(2 * 20_000)
        assert abs(one.mean()) < 5 * central.std / np.sqrt(20_000)
        assert (one == 0).mean() < 0.01


def test_the_noise_is_that_of_the_plan_and_no_less_fresh() -> None:
    experiment = config.loads(f'name = "central"\n{CLIENT}\n{SITES}')
    plan, central = PrivacyPlan.of(experiment), noise_of(CLIENT)
    assert central.std == plan.central_noise_multiplier * 2**16
    for other in ("", CLIENT.replace("central", "distributed")):
        assert type(noise_of(other)) is NoNoise and not noise_of(other).std
    seeded = noise_of("insecure_seeded_noise = true\n" + CLIENT)
    assert isinstance(seeded, CentralNoise) and isinstance(seeded.keys, SeededKeys)
    total = Aggregate(np.zeros(50, dtype=np.int64), 20)
    first, again, third = (seeded.added(total, number).total.values for number in (1, 1, 2))
    assert (first == again).all() and (first != third).any()
