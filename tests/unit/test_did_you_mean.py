"""An error about a name that is nearly right tells which one was meant."""

import pytest

from simulations.scenarios.catalogue import story
from tacit import config
from tacit.errors import ConfigError

COLUMN = (
    '[data.schema]\nlabel = "y"\nclasses = ["a", "b"]\n'
    '[data.schema.columns.age]\nkind = "numeric"\nrange = [0.0, 9.0]\n'
)
MEANT = {
    "[training]\nround = 5": "training.round: unknown key; did you mean 'rounds'?",
    "[task]\nhidden = [8]": "task.hidden: unknown key; did you mean 'model.hidden'?",
    "[trainning]\nrounds = 5": "trainning: unknown key; did you mean 'training'?",
    "[privacy.record]\nepsilon = 1.0\ndelta = 1e-5\nmetric_share = 0.1": "did you mean 'metrics_share'?",
    "[data]\nschem = 3": "data.schem: unknown key; did you mean 'schema'?",
    f"{COLUMN}scal = 2.0": "data.schema.columns.age.scal: unknown key; did you mean 'scale'?",
    f'{COLUMN}[data.schema.columns.sex]\nkind = "categorial"': "did you mean 'categorical'?",
    '[[partition.shifts]]\nkind = "drift"\ncolum = 1': "did you mean 'column",
    '[strategy]\nname = "fedadm"': "did you mean 'fedadam'?",
    '[task.model]\nname = "logistc"': "did you mean 'logistic'?",
    '[partition]\nkind = "dirichelt"': "did you mean 'dirichlet'?",
    '[task]\nkind = "tabluar"': "did you mean 'tabular'?",
}


@pytest.mark.parametrize("text", MEANT)
def test_a_name_that_is_nearly_right_is_told_which_one_was_meant(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.loads(f'name = "x"\n{text}')
    assert MEANT[text] in str(caught.value)


def test_a_name_that_is_like_no_other_is_told_none() -> None:
    for text in (
        "[training]\nxyz = 5",
        '[strategy]\nname = "zzz"',
        "[strategy]\nname = 3",
        "[training]\nrounds = 'd'",
    ):
        with pytest.raises(ConfigError) as caught:
            config.loads(f'name = "x"\n{text}')
        assert "did you mean" not in str(caught.value)


def test_a_scenario_is_told_too() -> None:
    with pytest.raises(ConfigError, match="; did you mean 'heart_disease'"):
        story("hart_disease")
