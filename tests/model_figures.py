"""What each model family reaches on a small data set of its kind; `python -m tests.model_figures` fills docs/models.md.

Slow: some minutes. Noise follows no seed, so the figures of private runs differ from run to run.
"""

import sys
import tempfile
from pathlib import Path

from simulations.run import simulate
from tacit import config, learning
from tests.matrix import FAMILIES, IMAGES, PAGE, SERIES, replaced

BEGIN, END = "<!-- what python -m tests.model_figures writes -->\n", "<!-- its end, too -->\n"
PROMISES = {
    "no privacy": "privacy=none",
    "epsilon 8": "privacy.record={epsilon=8.0, delta=1e-5}",
    "epsilon 3": "privacy.record={epsilon=3.0, delta=1e-5}",
}
TEXT = """
name = "figures"
[task]
kind = "{kind}"
model = {{name = "{name}"{heads}}}
[training]
rounds = 20
local_steps = 5
sampling_rate = 0.1
optimizer = "adam"
learning_rate = 0.01
schedule = "cosine"
[strategy]
weights = "declared"
[partition]
num_clients = 4
[secure_aggregation]
engine = "ideal"
[simulation]
tune_baselines = false
"""
BREAST_CANCER = ""  # the source where none is named
FRAUD = '[data]\nsource = "generated"\ngenerator = "card_fraud"\nrows = 4000\n'
DIGITS = '[data]\nsource = "digits"\n'
BEATS = '[data]\nsource = "generated"\ngenerator = "ecg_beats"\nrows = 2000\n'
NOTES = '[data]\nsource = "generated"\ngenerator = "triage_notes"\nrows = 4000\n'
DATA = {
    "breast cancer, 569 rows": BREAST_CANCER,
    "card fraud, 4000 generated rows": FRAUD,
    "digits, 1797 images": DIGITS,
    "beats, 2000 generated series": BEATS,
    "notes, 4000 generated texts": NOTES,
}


def data_of(name: str) -> str:
    """Which of `DATA` a family is tried on."""
    family = FAMILIES[name]
    if family.kind in learning.TEXT:
        return list(DATA)[4]
    if not family.shape:
        return list(DATA)[family.kind in learning.ANOMALY]
    return list(DATA)[{IMAGES: 2, SERIES: 3}[family.shape]]


def figures(name: str, folder: Path) -> list[float]:
    """AUROC over all held-out records: pooled without privacy, then the federation under each of `PROMISES`."""
    model = FAMILIES[name].model or name
    heads = ", heads = 4" if "heads" in learning.MODEL_KEYS[model] else ""  # all else is as by default
    text = TEXT.format(kind=FAMILIES[name].kind, name=model, heads=heads) + DATA[data_of(name)]
    found = []
    for number, promise in enumerate(PROMISES.values()):
        wanted = (promise, f"simulation.baselines={str(not number).lower()}", "checkpoints.keep=1")
        record = simulate(config.loads(text, overrides=wanted), folder / f"{name}-{number}")
        if record.baselines.pooled is not None:
            found.append(float(record.baselines.pooled.metrics["auroc"] or 0))
        found.append(float(record.final.metrics["auroc"] or 0))
    return found


def main(names: list[str]) -> None:
    """Measures some families, or all that predict or rank, and writes their lines."""
    names = names or [name for name, family in FAMILIES.items() if family.kind not in learning.SYNTHESIS]
    text = PAGE.read_text(encoding="utf-8")
    lines = {line.split("`")[1]: line for line in text.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]}
    with tempfile.TemporaryDirectory() as folder:
        for name in names or (name for name, family in FAMILIES.items() if not family.views):
            cells = [f"{value:.3f}" for value in figures(name, Path(folder))]
            lines[name] = f"| {' | '.join([f'`{name}`', data_of(name), *cells])} |"
            print(lines[name], flush=True)
    heads = ["`task.model.name`", "data", "pooled, no privacy", *PROMISES]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    rows += [lines[name] for name in FAMILIES if name in lines]
    PAGE.write_text(replaced(text, BEGIN, END, "\n".join(rows) + "\n"), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
