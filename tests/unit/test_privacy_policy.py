"""The site's policy: each refusal with its reason, and each bad file in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulations.source_schemas import breast_cancer
from tacit import config
from tacit.errors import ConfigError, Refused
from tacit.learning import MODEL_KEYS
from tacit.privacy.policy import SitePolicy, fewest_parameters
from tacit.tasks import load_task
from tests.matrix import FAMILIES

SITES = "".join(f'[[federation.sites]]\nlabel = "s{i}"\nrows = 50\n' for i in range(10))
RECORD = "[privacy.record]\nepsilon = 1.0\ndelta = 1e-4\n"
CLIENT = "[privacy.client]\nepsilon = 3.0\ndelta = 1e-4\n"
SCHEMA = """
[data.schema]
label = "y"
classes = ["a", "b", "c"]
[data.schema.columns.age]
kind = "numeric"
range = [0, 100]
[data.schema.columns.colour]
kind = "categorical"
categories = ["red", "green"]
"""


def experiment(text: str = RECORD) -> config.Experiment:
    return config.loads(f'name = "policy"\n{text}\n{SITES}')


def test_without_a_file_a_private_experiment_with_secure_aggregation_is_allowed() -> None:
    SitePolicy().check(experiment())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("task", {}, 'task.kind = "subprocess:run"\n'),
    ("task", {"allowed_tasks": ("a:b",)}, RECORD),
    ("secure-aggregation", {}, "secure_aggregation.enabled = false\n"),
    ("secure-aggregation", {}, 'secure_aggregation.engine = "ideal"\n'),
    ("secure-aggregation", {"allow_single_updates": True}, "secure_aggregation.enabled = false\n"),
    ("single-update", {"require_secure_aggregation": False}, "secure_aggregation.enabled = false\n"),
    ("cohort", {"min_honest": 10}, RECORD),
    ("cohort", {"min_honest": 8}, "secure_aggregation.max_dropouts = 2\n"),
    ("cohort", {"min_honest": 4}, "training.clients_per_round = 4\n"),
    ("update-norm", {"max_update_norm": 1.0}, RECORD),
    ("not-private", {"epsilon_ceiling": 5.0, "delta": 1e-3}, ""),
    ("budget", {"epsilon_ceiling": 0.9, "delta": 1e-3}, RECORD),
    (
        "budget",
        {"epsilon_ceiling": 5.0, "delta": 1e-3},
        RECORD + "[privacy.client]\nepsilon = 9.0\ndelta = 1e-4\n",
    ),
    ("budget", {"epsilon_ceiling": 5.0, "delta": 1e-4}, CLIENT),  # for a record it is twice the sensitivity
    ("delta", {"epsilon_ceiling": 5.0, "delta": 1e-5}, RECORD),
    ("delta", {"delta": 1e-5}, RECORD),
    ("model-size", {"max_model_parameters": 114}, SCHEMA),
]


@pytest.mark.parametrize(("reason", "policy", "text"), REFUSED)
def test_a_refusal_has_its_reason(reason: str, policy: dict[str, Any], text: str) -> None:
    with pytest.raises(Refused) as caught:
        SitePolicy(**policy).check(experiment(text))
    assert caught.value.reason == reason


ALLOWED: list[tuple[dict[str, Any], str]] = [
    ({"allowed_tasks": ("a:b",)}, 'task.kind = "a:b"\n'),
    (
        {"require_secure_aggregation": False, "allow_single_updates": True},
        "secure_aggregation.enabled = false\n",
    ),
    ({"min_honest": 9}, RECORD),
    ({"max_update_norm": 10.0}, RECORD),
    ({"epsilon_ceiling": 1.0, "delta": 1e-4}, RECORD),
    ({"epsilon_ceiling": 8.0, "delta": 1e-4}, CLIENT),
    ({"epsilon_ceiling": 3.0, "delta": 1e-4}, CLIENT + RECORD),
    ({"max_model_parameters": 115}, SCHEMA),
    ({}, ""),
]


@pytest.mark.parametrize(("policy", "text"), ALLOWED)
def test_what_stays_within_the_policy_is_allowed(policy: dict[str, Any], text: str) -> None:
    SitePolicy(**policy).check(experiment(text))


def test_a_received_model_is_measured_too() -> None:
    SitePolicy(max_model_parameters=10).check_model(10)
    with pytest.raises(Refused, match="model-size"):
        SitePolicy(max_model_parameters=10).check_model(11)


@pytest.mark.parametrize("model", ['name = "logistic"', "hidden = [7, 5]", ""])
def test_parameters_are_counted_as_the_model_has_them(model: str) -> None:
    from tacit.tasks.models import build

    built = experiment(f"[task.model]\n{model}\n{SCHEMA}")
    assert built.data.columns is not None
    parameters = build(built.task.model, len(built.data.columns.feature_names), 3).parameters()
    assert fewest_parameters(built) == sum(p.numel() for p in parameters)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "sizes", [{"hidden": [5, 8], "channels": [3, 6]}, {"hidden": [300, 4], "channels": [2, 40]}]
)
def test_no_model_has_fewer_parameters_than_are_known_before_it_is_built(
    name: str, sizes: dict[str, list[int]], tmp_path: Path
) -> None:
    model = FAMILIES[name].model or name
    changes = ["secure_aggregation.enabled=false"]
    changes += [f"task.model.{key}={value}" for key, value in sizes.items() if key in MODEL_KEYS[model]]
    built = config.loads(FAMILIES[name].text(name, tmp_path), overrides=changes)
    if built.data.columns is None and built.data.arrays is None:
        data = built.data.model_copy(update={"columns": breast_cancer()})
        built = built.model_copy(update={"data": data})
    total = sum(p.numel() for p in load_task(built).model().parameters())
    assert fewest_parameters(built) <= total
    if model != "logistic":
        assert total / 200 < fewest_parameters(built), "and it says something"
        policy = {"max_model_parameters": fewest_parameters(built) - 1, "require_secure_aggregation": False}
        with pytest.raises(Refused, match="model-size"):
            SitePolicy(**policy, allow_single_updates=True).check(built)


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        "epsilon_ceiling = 3\ndelta = 1e-5\nmin_honest = 5\n"
        'allowed_tasks = ["tabular", "hospital.tasks:Sepsis"]\nmax_rounds_per_hour = 60\n'
    )
    policy = SitePolicy.load(path)
    assert (policy.epsilon_ceiling, policy.min_honest) == (3.0, 5)
    assert policy.allowed_tasks == ("tabular", "hospital.tasks:Sepsis")
    assert policy.require_secure_aggregation and not policy.allow_single_updates


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("epsilon_celing = 1.0", "epsilon_celing"),
        ("epsilon_ceiling = 1.0", "delta"),
        ("epsilon_ceiling = inf\ndelta = 1e-5", "epsilon_ceiling"),
        ("epsilon_ceiling = nan\ndelta = 1e-5", "epsilon_ceiling"),
        ("epsilon_ceiling = 0\ndelta = 1e-5", "epsilon_ceiling"),
        ("delta = 1", "delta"),
        ("min_honest = 1", "min_honest"),
        ("min_honest = 2.5", "min_honest"),
        ('require_secure_aggregation = "no"', "require_secure_aggregation"),
        ('data_set = "ward-7"', "data_set"),  # site.toml names it, and nothing else does
        ("max_model_parameters = 0", "max_model_parameters"),
        ("max_update_norm = -1", "max_update_norm"),
        ("delta = 1e-5\ndelta = 1e-6", "TOML"),
        ("= 3", "TOML"),
    ],
)
def test_a_bad_policy_file_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        SitePolicy.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and key in message and "\n" not in message


def test_a_policy_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        SitePolicy.load(tmp_path / "policy.toml")
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read: not UTF-8 text"):
        SitePolicy.load(tmp_path / "policy.toml")
