"""A whole simulation of each built-in kind of task, report and model card included."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulations.run import simulate
from tacit import config
from tacit.errors import ConfigError
from tacit.inference.predictor import Predictor
from tacit.inference.trained import Trained
from tacit.learning import ANOMALY, BUILT_IN, CLASSES, LABELS, NUMBERS, RANKING, SYNTHESIS, TEXT

EXPERIMENT = """
name = "kind"
{data}
[partition]
num_clients = 3
[task]
kind = "{kind}"
[task.model]
name = "{model}"
hidden = [4]
[training]
rounds = 2
local_steps = 1
sampling_rate = 0.3
[secure_aggregation]
engine = "ideal"
[simulation]
baselines = false
"""
ARRAYS = """[data]
source = "npz"
path = "{path}"
[data.arrays]
shape = {shape}
{outputs}
"""


NOTES = """[data]
source = "csv"
path = "{path}"
[data.schema]
label = "y"
classes = ["a", "b", "c"]
text = {{column = "note", vocabulary = 30, length = 5}}
"""


def experiment(kind: str, folder: Path) -> config.Experiment:
    if kind in TEXT:
        lines = [f"this is {'abc'[i % 3]} {i},{'abc'[i % 3]}" for i in range(120)]
        (folder / "notes.csv").write_text("\n".join(["note,y", *lines]))
        data = NOTES.format(path=folder / "notes.csv")
        return config.loads(EXPERIMENT.format(kind=kind, data=data, model="embedding"))
    rng = np.random.default_rng(1)
    y = np.arange(120) % 3
    x = (rng.normal(size=(120, 4)) + y[:, None]).astype(np.float32)
    targets: dict[str, Any] = {
        **dict.fromkeys((*CLASSES, *ANOMALY, *SYNTHESIS), y),
        **dict.fromkeys(NUMBERS, x[:, :2]),
        **dict.fromkeys(LABELS, (x[:, :3] > 0).astype(np.int64)),
        **dict.fromkeys(RANKING, np.clip(x.round(), -1, 3)),
    }
    x = x[:, None].repeat(2, axis=1) if kind in RANKING else x
    np.savez(folder / "data.npz", x=x, y=targets[kind])
    outputs = "outputs = 2" if kind in NUMBERS else 'classes = ["a", "b", "c"]'
    outputs = "grades = 3" if kind in RANKING else outputs
    outputs += "\nseveral = true" if kind in LABELS else ""
    own = {"path": folder / "data.npz", "outputs": outputs, "shape": list(x.shape[1:])}
    data = "" if kind.startswith("tabular") else ARRAYS.format(**own)
    model = "autoencoder" if kind in ANOMALY else "gan" if kind in SYNTHESIS else "mlp"
    return config.loads(EXPERIMENT.format(kind=kind, data=data, model=model))


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_kind_of_task_has_a_report_and_what_it_predicts_leaves_as_what_it_is(
    kind: str, tmp_path: Path
) -> None:
    record = simulate(experiment(kind, tmp_path), tmp_path / "run")
    assert record.final.metrics
    assert (record.final.outcomes is not None) == (kind in CLASSES)
    assert (tmp_path / "run" / "report.html").stat().st_size and (
        tmp_path / "run" / "model-card.md"
    ).is_file()
    trained = Trained.open(tmp_path / "run")
    if kind in SYNTHESIS:
        with pytest.raises(ConfigError, match=r"task\.kind: .* predicts nothing: tacit synthesize RUN"):
            Predictor(trained)
        return
    if kind not in (*CLASSES, *NUMBERS, *RANKING):
        with pytest.raises(ConfigError, match=rf'task\.kind: "{kind}" predicts neither a class, numbers nor'):
            Predictor(trained)
        return
    outputs = [output.name for output in Predictor(trained).outputs]
    named = {CLASSES: ["probabilities", "class"], NUMBERS: ["prediction"], RANKING: ["scores"]}
    assert outputs == next(names for kinds, names in named.items() if kind in kinds)
