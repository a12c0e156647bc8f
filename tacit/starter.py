"""`tacit init`: a commented experiment file that runs as it stands and is meant to be changed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from tacit.errors import ConfigError

# Lines "# so" explain; lines "#so" are settings that are switched off. The second kind is tested too.
STARTER = """\
# One file says everything about one federated training.
#
#   try it         tacit simulate $file
#   try a change   tacit simulate $file --set privacy.record.epsilon=1 --out runs/epsilon-1
#
# A line that begins with "# " explains. A line that begins with "#" alone is a setting that is
# switched off: take the # away to use it. A key that does not exist is an error, never ignored.
# All keys with their defaults: docs/configuration.md.

name = "$name"
seed = 7                    # data split, first weights, rounding; never the noise that protects people

# ---- The data ------------------------------------------------------------------------------------
# Real data to begin with, embedded in scikit-learn: 569 biopsies with 30 measurements of cell nuclei,
# benign or malignant.
[data]
source = "breast_cancer"
# For a table of your own, remove the line above and switch these lines on. The file is CSV with a
# header, one row for each patient. A simulation divides it among imagined sites; in a federation each
# site keeps its own file and nobody else ever reads it.
#source = "csv"
#path = "patients.csv"      # from the folder that you start tacit in
test_fraction = 0.25        # of each site's rows, held out: the report's figures are of them

# What the columns of your table mean. You declare it, because a mean or a range computed from
# patients says something about them, and privacy would have to pay for that. Say what is plausible for
# anybody, from a textbook or the code book. Columns that are not named here are never read.
#[data.schema]
#label = "readmitted"        # the column to predict ...
#classes = ["no", "yes"]     # ... and its values
#[data.schema.columns.age]
#kind = "numeric"
#range = [18, 100]           # becomes -1 to 1
#[data.schema.columns.creatinine]
#kind = "numeric"
#center = 1.0                # or say what is subtracted and what is divided by, here in mg/dl
#scale = 0.5
#indicator = true            # one more feature that says "was not measured"
#[data.schema.columns.ward]
#kind = "categorical"
#categories = ["surgery", "medicine", "intensive care"]

# ---- The sites (simulation only) -----------------------------------------------------------------
# Who has which rows. "dirichlet" makes hospitals that differ in size and in their share of each class,
# as real ones do. If your table has a column that names the hospital, use that instead.
[partition]
kind = "dirichlet"          # or iid, quantity, feature_shift, natural
num_clients = 10
alpha = 0.5                 # smaller = hospitals differ more
#kind = "natural"           # one site per value ...
#column = "hospital"        # ... of this column

# ---- The model -----------------------------------------------------------------------------------
# "tabular" is built in. A PyTorch model of your own: kind = "my_file:MyTask", see
# docs/tutorial-own-model.md.
[task]
kind = "tabular"

[task.model]
name = "logistic"           # or "mlp"; little data and strict privacy ask for few weights
#hidden = [16]              # widths of the hidden layers of "mlp"

# ---- Training ------------------------------------------------------------------------------------
# A round: every site starts from the common model and makes `local_steps` steps on its own rows, and
# the server learns the sum of what changed. In each step a row takes part with the probability
# `sampling_rate`, drawn anew; expect batches of that share of a site's rows.
[training]
rounds = 30
local_steps = 1
sampling_rate = 0.5
optimizer = "sgd"           # or adam, adamw, rmsprop, adagrad
learning_rate = 2.0
schedule = "cosine"         # towards 0 in the last round; or constant, step

[strategy]
name = "fedavg"             # docs/strategies.md; "fedprox" with proximal_mu = 0.1 where sites differ a lot
weights = "declared"        # a site counts by the number of rows it declares; or "equal"

# ---- Privacy -------------------------------------------------------------------------------------
# The promise, for each patient's row and the whole training together: whatever the updates and the
# model tell anybody, they would have told almost the same without this row. "Almost" is a factor of at
# most e^epsilon in the odds, but for a chance of delta. You state the promise; the noise follows from it.
#   epsilon   1 is strict, 3 is moderate, 10 is weak; a smaller one costs accuracy
#   delta     below 1 / (rows of the smallest site), better far below
# Remove the table, or say --set privacy=none, for a run without a promise to compare with.
[privacy.record]
epsilon = 3.0
delta = 1e-5
max_grad_norm = 1.0         # a single row pulls at the model by at most so much

# ---- The secure sum ------------------------------------------------------------------------------
# Sites mask their updates so that the masks cancel in the sum; the server sees the sum alone. Of n sites
# at least n - max_dropouts - max_corrupt must be honest and present, and that must be 2 or more.
[secure_aggregation]
enabled = true
max_corrupt = 1             # sites that may be in league with the server
max_dropouts = 2            # sites that may vanish in a round

# ---- What is kept --------------------------------------------------------------------------------
[checkpoints]
keep = 0                    # all rounds' models: the report draws its learning curves from them
"""


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("experiment.toml"),
) -> None:
    """Write a commented experiment file to begin with.

    It runs as it stands, on real data that need no download. Its comments show
    how to put your own table and your own model in their place.
    """
    if not file.suffix:
        file = file.with_suffix(".toml")
    try:
        with file.open("x", encoding="utf-8") as handle:
            handle.write(starter(file))
    except FileExistsError:
        raise ConfigError("is there already and is left as it is; name another file", source=file) from None
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", source=file) from None
    print(f"wrote {file}; try it: tacit simulate {shlex.quote(str(file))}")


def starter(file: Path) -> str:
    """The text for `file`, whose name becomes the experiment's."""
    name = re.sub(r"[^A-Za-z0-9 ._-]+", "-", file.stem).lstrip(" ._-")[:80]
    return Template(STARTER).substitute(file=shlex.quote(str(file)), name=name or "experiment")
