"""What each model family reaches on a small data set of its kind; `python -m tests.model_figures` fills docs/models.md.

Slow: some minutes for each family. Noise follows no seed, so the figures of private runs differ from run to run.
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
sampling_rate = {rate}
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
BEATS = '[data]\nsource = "generated"\ngenerator = "ecg_beats"\nrows = 16000\n'
NOTES = '[data]\nsource = "generated"\ngenerator = "triage_notes"\nrows = 32000\n'
VITALS = '[data]\nsource = "generated"\ngenerator = "icu_vitals"\nrows = 16000\n'
DATA = {
    "breast cancer, 569 rows": BREAST_CANCER,
    "card fraud, 4000 generated rows": FRAUD,
    "digits, 1797 images": DIGITS,
    "beats, 16000 generated series": BEATS,
    "notes, 32000 generated texts": NOTES,
    "vitals, 16000 generated series": VITALS,
}
RECURRENT = (
    "rnn",
    "gru",
    "lstm",
)  # a step takes them as long as the series is, so theirs has 24 places and not 96
RATES = {BEATS: 0.05, NOTES: 0.025, VITALS: 0.05}  # chance of a record to be in a step's batch; else 0.1
SEEDS = (7, 8, 9)
CLOSE = 0.05  # of AUROC: so near epsilon 8 should be to the pooled model without privacy


def data_of(name: str) -> str:
    """Which of `DATA` a family is tried on."""
    family = FAMILIES[name]
    if family.kind in learning.TEXT:
        return list(DATA)[4]
    if name in RECURRENT:
        return list(DATA)[5]
    if not family.shape:
        return list(DATA)[family.kind in learning.ANOMALY]
    return list(DATA)[{IMAGES: 2, SERIES: 3}[family.shape]]


def measured() -> list[str]:
    """The families whose scores have an AUROC."""
    kinds = (*learning.CLASSES, *learning.ANOMALY)
    return [name for name, family in FAMILIES.items() if family.kind in kinds and not family.views]


def figures(name: str, folder: Path, seed: int) -> list[float]:
    """AUROC over all held-out records: pooled without privacy, then the federation under each of `PROMISES`."""
    model, data = FAMILIES[name].model or name, DATA[data_of(name)]
    heads = ", heads = 4" if "heads" in learning.MODEL_KEYS[model] else ""  # all else is as by default
    text = TEXT.format(kind=FAMILIES[name].kind, name=model, heads=heads, rate=RATES.get(data, 0.1)) + data
    found = []
    for number, promise in enumerate(PROMISES.values()):
        wanted = (
            promise,
            f"simulation.baselines={str(not number).lower()}",
            "checkpoints.keep=1",
            f"seed={seed}",
        )
        record = simulate(config.loads(text, overrides=wanted), folder / f"{name}-{number}-{seed}")
        if record.baselines.pooled is not None:
            found.append(float(record.baselines.pooled.metrics["auroc"] or 0))
        found.append(float(record.final.metrics["auroc"] or 0))
    return found


def line(name: str, folder: Path) -> str:
    """The family's line: means over `SEEDS`, with the least and the largest."""
    columns = list(zip(*(figures(name, folder, seed) for seed in SEEDS), strict=True))
    means = [sum(column) / len(column) for column in columns]
    cells = [f"{mean:.3f} ({min(c):.3f} to {max(c):.3f})" for mean, c in zip(means, columns, strict=True)]
    is_close = means[2] >= means[0] - CLOSE
    return f"| {' | '.join([f'`{name}`', data_of(name), *cells, 'yes' if is_close else 'no'])} |"


def main(names: list[str]) -> None:
    """Measures some families, or all that can be, and writes their lines."""
    text = PAGE.read_text(encoding="utf-8")
    lines = {line.split("`")[1]: line for line in text.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]}
    heads = ["`task.model.name`", "data", "pooled, no privacy", *PROMISES, "epsilon 8 within 0.05 of pooled"]
    with tempfile.TemporaryDirectory() as folder:
        for name in names or measured():
            lines[name] = line(name, Path(folder))
            print(lines[name], flush=True)
            rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
            rows += [lines[known] for known in measured() if known in lines]
            PAGE.write_text(
                replaced(PAGE.read_text(encoding="utf-8"), BEGIN, END, "\n".join(rows) + "\n"),
                encoding="utf-8",
            )


if __name__ == "__main__":
    main(sys.argv[1:])
