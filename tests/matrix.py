"""Each model family under each promise with each executor: it trains, or is refused with the reason.

`python -m tests.matrix` writes the table into docs/models.md; tests/integration/test_matrix.py runs what it says.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tacit.learning import MODEL_KEYS, RANKING, SYNTHESIS, TEXT

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- what python -m tests.matrix writes -->\n", "<!-- its end -->\n"

EXPERIMENT = """
name = "cell"
insecure_seeded_noise = true
[partition]
num_clients = 4
min_rows = 4
[task]
kind = "{kind}"
augment = {views}
[task.model]
name = "{name}"
{size}
[training]
rounds = 1
local_steps = 2
sampling_rate = 0.3
[simulation]
baselines = false
"""
NOTES = """
[data]
source = "csv"
path = "{path}"
[data.schema]
label = "y"
classes = ["low", "high"]
text = {{column = "note", vocabulary = 40, length = 6}}
"""
WORDS = (("calm", "well", "rests"), ("worse", "pain", "calls"))
ARRAYS = """
[data]
source = "npz"
path = "{path}"
[data.arrays]
shape = {shape}
{targets}
"""


@dataclass(frozen=True)
class Family:
    """A line of the table.

    Attributes:
        kind: of task that it is tried with.
        shape: of its records; () = the rows of a table.
        model: its name, where the line has another one.
        views: `[task.augment]`, as an inline table.
    """

    kind: str
    shape: tuple[int, ...] = ()
    model: str = ""
    views: str = ""

    @property
    def records(self) -> str:
        """In words."""
        if self.kind in TEXT:
            return "text"
        if self.kind in RANKING:
            return "lists, `[features, items]`"
        if self.kind in SYNTHESIS:
            return "table rows"
        axes = {0: "table rows, or any array", 2: "`[channels, time]`", 3: "`[channels, height, width]`"}
        return axes[len(self.shape)] + (f", `{self.views}`" if self.views else "")

    def text(self, name: str, folder: Path) -> str:
        """The experiment; what it reads is written into the folder."""
        model = self.model or name
        sizes = {"hidden": [4], "channels": [2, 4]}
        size = "\n".join(f"{key} = {value}" for key, value in sizes.items() if key in MODEL_KEYS[model])
        text = EXPERIMENT.format(kind=self.kind, views=self.views or "{}", name=model, size=size)
        rng = np.random.default_rng(1)
        y = np.arange(120) % 2
        if self.kind in TEXT:
            drawn = [[WORDS[i % 2][k] for k in rng.integers(3, size=i % 10)] for i in range(120)]
            lines = [f"{' '.join(words)},{('low', 'high')[i % 2]}" for i, words in enumerate(drawn)]
            (folder / "notes.csv").write_text("\n".join(["note,y", *lines]), encoding="utf-8")
            return text + NOTES.format(path=folder / "notes.csv")
        if not self.shape:
            return text
        x = rng.normal(size=(120, *self.shape)) + y.reshape(-1, *[1] * len(self.shape))
        targets = 'classes = ["low", "high"]'
        if self.kind in RANKING:  # the first feature tells; lists have from one item up
            items = self.shape[-1]
            y = np.where(
                np.arange(items) <= np.arange(120)[:, None] % items, np.clip(x[:, 0].round(), 0, 3), -1
            )
            targets = "grades = 3"
        np.savez(folder / "data.npz", x=x.astype(np.float32), y=y)
        return text + ARRAYS.format(path=folder / "data.npz", shape=list(self.shape), targets=targets)


IMAGES, SERIES, LISTS = (1, 6, 6), (2, 9), (3, 5)
FAMILIES = {
    "logistic": Family("tabular"),
    "mlp": Family("tabular"),
    "autoencoder": Family("tabular_anomaly"),
    "vae": Family("tabular_anomaly"),
    "gan": Family("tabular_synthesis"),
    "cnn": Family("array_classification", IMAGES),
    "resnet": Family("array_classification", IMAGES),
    "cnn1d": Family("array_classification", SERIES),
    "rnn": Family("array_classification", SERIES),
    "gru": Family("array_classification", SERIES),
    "lstm": Family("array_classification", SERIES),
    "transformer": Family("array_classification", SERIES),
    "embedding": Family("text_classification"),
    "transformer of text": Family("text_classification", model="transformer"),
    "logistic of lists": Family("array_ranking", LISTS, model="logistic"),
    "mlp of lists": Family("array_ranking", LISTS, model="mlp"),
    "masked rows": Family("tabular_anomaly", model="autoencoder", views="{mask = 0.3, noise = 0.1}"),
    "views of rows": Family("tabular", model="mlp", views="{views = 3, noise = 0.2, mask = 0.1}"),
    "views of images": Family(
        "array_classification", IMAGES, model="cnn", views="{views = 3, flip = 0.5, shift = 1}"
    ),
}
PROMISES = {
    "none": "privacy=none",
    "record": "privacy.record={epsilon=20.0, delta=1e-3}",
    "client": "privacy.client={epsilon=20.0, delta=1e-2}",
}
EXECUTORS = ("serial", "stacked", "workers")


def refusal(name: str, executor: str) -> str:
    """Why the executor does not take the family; empty if it does. No promise makes a difference."""
    if executor == "stacked" and FAMILIES[name].views:
        return "a step sees views"
    if executor != "stacked" or name in ("logistic", "mlp", "autoencoder"):
        return ""
    return "a record is a list" if FAMILIES[name].kind in RANKING else "not a plain stack"


def table() -> str:
    """In Markdown: a line for each family, a column for each promise and for each way to train."""
    heads = ["`task.model.name`", "records", *PROMISES, *EXECUTORS, "ray"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, family in FAMILIES.items():
        cells = [f"refused: {reason}" if (reason := refusal(name, e)) else "trains" for e in EXECUTORS]
        cells = [f"`{family.model or name}`", family.records, *["trains"] * len(PROMISES), *cells, "trains"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """A page with its table as it has to be."""
    return replaced(text, BEGIN, END, table())


def replaced(text: str, begin: str, end: str, table: str) -> str:
    """A page with another table between two marks."""
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    assert found, f"{PAGE} has lost its marks"
    return f"{before}{begin}{table}{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
