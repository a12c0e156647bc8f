"""An experiment file: what is refused, in which words, and what the rest becomes."""

import json
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from simulations.tuning.space import Tuning
from tacit import config
from tacit.errors import ConfigError
from tacit.federation import FederationFile
from tacit.privacy.policy import SitePolicy

TACIT = shutil.which("tacit", path=sysconfig.get_path("scripts"))
SCHEMA = '[data.schema]\nlabel = "y"\n[data.schema.columns.age]\nkind = "numeric"\n'

# name of the mistake -> (the file after its first line, the key that is named, what is said)
BAD_FILES = {
    "missing key": ("[privacy.record]\ndelta = 1e-5", "privacy.record.epsilon", "required key is missing"),
    "unknown key": ("[training]\nround = 5", "training.round", "unknown key; did you mean 'rounds'?"),
    "unknown table": ("[trainig]\nrounds = 5", "trainig", "unknown key; did you mean 'training'?"),
    "unknown key below": ("[privacy.record]\nepsilon=1.0\ndelta=1e-5\nnoise=2.0", "privacy.record.noise", "unknown"),
    "a noise multiplier": ("[privacy]\nnoise_multiplier = 1.1", "privacy.noise_multiplier", "unknown key"),
    "text for a number": ('[training]\nrounds = "ten"', "training.rounds", "valid integer, not 'ten'"),
    "number for text": ("[task]\nkind = 3", "task.kind", "valid string, not 3"),
    "number for a truth": ("[secure_aggregation]\nenabled = 1", "secure_aggregation.enabled", "valid boolean, not 1"),
    "fraction for a count": ("[training]\nrounds = 2.5", "training.rounds", "valid integer, not 2.5"),
    "table for a value": ("[training.rounds]\nvalue = 3", "training.rounds", "valid integer, not a table"),
    "value for a table": ("training = 3", "training", "not 3"),
    "list for a value": ("seed = [1]", "seed", "valid integer, not [1]"),
    "date for text": ("[data]\ndir = 2026-01-01", "data.dir", "valid string"),
    "NaN": ("[privacy.record]\nepsilon = nan\ndelta = 1e-5", "privacy.record.epsilon", "not nan"),
    "infinite epsilon": ("[privacy.record]\nepsilon = inf\ndelta = 1e-5", "privacy.record.epsilon", "not inf"),
    "infinite rate": ("[training]\nlearning_rate = inf", "training.learning_rate", "finite number, not inf"),
    "zero epsilon": ("[privacy.record]\nepsilon = 0.0\ndelta = 1e-5", "privacy.record.epsilon", "greater than 0"),
    "negative epsilon": ("[privacy.record]\nepsilon = -1.0\ndelta = 1e-5", "privacy.record.epsilon", "greater than 0"),
    "delta of one": ("[privacy.record]\nepsilon = 1.0\ndelta = 1.0", "privacy.record.delta", "less than 1"),
    "zero delta": ("[privacy.record]\nepsilon = 1.0\ndelta = 0.0", "privacy.record.delta", "greater than 0"),
    "delta above one over the rows": (
        '[privacy.record]\nepsilon = 1.0\ndelta = 0.01\n[[federation.sites]]\nlabel = "a"\nrows = 100\n'
        '[secure_aggregation]\nenabled = false',
        "privacy.record.delta",
        "must be below 1/100",
    ),
    "zero rounds": ("[training]\nrounds = 0", "training.rounds", "greater than or equal to 1"),
    "negative steps": ("[training]\nlocal_steps = -1", "training.local_steps", "greater than or equal to 1"),
    "sampling rate above one": ("[training]\nsampling_rate = 1.5", "training.sampling_rate", "less than or equal to 1"),
    "whole site held out": ("[data]\ntest_fraction = 1.0", "data.test_fraction", "less than 1"),
    "layer without neurons": ("[task.model]\nhidden = [16, 0]", "task.model.hidden.1", "not 0"),
    "a channel by itself": ("[task.model]\nchannels = [8, 1]", "task.model.channels.1", "not 1"),
    "unknown choice": ('[training]\noptimizer = "lbfgs"', "training.optimizer", "not 'lbfgs'"),
    "heads that do not divide": (
        '[task.model]\nname = "transformer"\nhidden = [9]', "task.model", "heads = 2 must divide",
    ),
    "dropout between no layers": (
        '[task.model]\nname = "logistic"\ndropout = 0.5', "task.model.dropout",
        'no key of name = "logistic", which has none: leave it out',
    ),
    "a key of another model": (
        '[task.model]\nheads = 4\nname = "gru"', "task.model.heads",
        'no key of name = "gru", which has hidden, dropout:',
    ),
    "loss of another kind": ('[task]\nloss = "huber"', "task", "is for array_regression, not 'tabular'"),
    "weights without classes": (
        '[task]\nkind = "array_regression"\nclass_weights = [1.0, 2.0]', "task", "class_weights is for tabular",
    ),
    "a class that counts nothing": ("[task]\nclass_weights = [1.0, 0.0]", "task.class_weights.1", "not 0.0"),
    "smoothing of the focal loss": (
        '[task]\nloss = "focal"\nlabel_smoothing = 0.1', "task", 'loss = "cross_entropy"',
    ),
    "a start without its digest": ('[task.start]\nfile = "w.npz"', "task.start", "sha256sum FILE prints it"),
    "frozen where they were drawn": ('[task.start]\nfreeze = ["0.*"]', "task.start", "freeze needs file"),
    "a digest that is none": ('[task.start]\nsha256 = "ab"', "task.start.sha256", "match"),
    "a start of a task of one's own": (
        f'[task]\nkind = "a:b"\nstart = {{file = "w.npz", sha256 = "{"0" * 64}"}}', "task", "Tacit's own models",
    ),
    "warm-up longer than the run": (
        "[training]\nrounds = 3\nwarmup_rounds = 4", "training", "warmup_rounds = 4 is above rounds = 3",
    ),
    "cohort above the clients": ("[training]\nclients_per_round = 11", "training.clients_per_round", "above the 10"),
    "no client": ("[partition]\nnum_clients = 0", "partition.num_clients", "greater than or equal to 1"),
    "threshold above the cohort": (
        "[secure_aggregation]\nmax_corrupt = 10", "secure_aggregation.max_corrupt", "threshold 11 is above the cohort",
    ),
    "threshold above the survivors": (
        "[secure_aggregation]\nmax_dropouts = 5", "secure_aggregation.max_dropouts", "the threshold is 6",
    ),
    "D + c of n": (
        "[partition]\nnum_clients = 2\n[secure_aggregation]\nmax_corrupt = 1",
        "secure_aggregation.max_corrupt + max_dropouts",
        "fewer than 2 honest of 2 clients",
    ),
    "nobody corrupt": ("[secure_aggregation]\nmax_corrupt = 0", "secure_aggregation.max_corrupt", "not 0"),
    "sum of more than 32 bits": (
        "[partition]\nnum_clients = 128\n[secure_aggregation]\nprecision_bits = 24",
        "secure_aggregation.precision_bits",
        "the sum of 128 clients does not fit into 32 bits",
    ),
    "bits without end": ("[secure_aggregation]\nprecision_bits = 25", "secure_aggregation.precision_bits", "not 25"),
    "early stopping blindfold": ("[evaluation]\npatience = 3", "evaluation.patience", "evaluation.metrics = true"),
    "metrics that nothing pays for": (
        "[evaluation]\nmetrics = true\n[privacy.record]\nepsilon = 1.0\ndelta = 1e-5",
        "evaluation.metrics",
        "privacy.record.metrics_share",
    ),
    "mu without FedProx": ("[strategy]\nproximal_mu = 0.1", "strategy", 'name = "fedprox"'),
    "natural without its column": ('[partition]\nkind = "natural"', "partition", "needs column"),
    "csv without its file": ('[data]\nsource = "csv"', "data", "needs path"),
    "task without its object": ('[task]\nkind = "my_task"', "task", '"module:object"'),
    "options that are tables": ("[task.options.deep]\nwidth = 3", "task.options.deep", "not a table"),
    "two sites of one name": (
        '[federation]\nsites = [{label = "a", rows = 5}, {label = "a", rows = 5}]', "federation", "same label",
    ),
    "column without a scale": (SCHEMA, "data.schema.columns.age", "state range"),
    "column upside down": (SCHEMA + "range = [9, 1]", "data.schema.columns.age", "lower value first"),
    "column of no kind": (SCHEMA.replace("numeric", "numreic"), "data.schema.columns.age", "numreic"),
    "table of no columns": ('[data.schema]\nlabel = "y"', "data.schema.columns", "at least one column"),
    "label among the features": (SCHEMA.replace("age", "y") + "range = [0, 1]", "data.schema", "cannot be a feature"),
    "key twice": ("seed = 1\nseed = 2", "seed", "at line 3"),
    "table twice": ("[data]\n[training]\n[data]", "[data]", "at line 4"),
    "key without a value": ("seed =", "seed", "at line 2"),
    "not TOML": ("training:\n  rounds: 5", "training:", "at line 2"),
    "number without end": ("seed = " + "9" * 5000, "not valid TOML", "4300 digits"),
    "nesting without end": ("seed = " + "[" * 5000, "not valid TOML", ""),
}  # fmt: skip

BAD_OVERRIDES = {
    "no value": ("training.rounds", "--set", "is not key=value"),
    "no key": ("=3", "--set", "is not key=value"),
    "hole in the key": ("training..rounds=3", "--set", "is not key=value"),
    "below a value": ("name.first=3", "--set: name", "is not a table"),
    "unknown key": ("training.round=3", "--set: training.round", "unknown key"),
    "wrong type": ("training.rounds=many", "--set: training.rounds", "not 'many'"),
    "impossible": ("privacy.record.epsilon=-1", "--set: privacy.record.epsilon", "greater than 0"),
    "name removed": ("name=none", "--set: name", "required key is missing"),
    "number without end": (f"seed={'9' * 5000}", "--set: seed", "..."),
}

BAD_BYTES = {
    "latin-1": 'name = "Zürich"'.encode("latin-1"),
    "zeros": b"\0" * 64,
    "a picture": b"\x89PNG\r\n\x1a\n",
}


def _refusal(path: Path, *overrides: str) -> str:
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        config.load(path, overrides)
    assert time.process_time() - started < 1.0
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(("text", "key", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_G1_a_bad_file_is_one_line_that_names_file_and_key(
    tmp_path: Path, text: str, key: str, words: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'name = "bad"\n{text}\n', encoding="utf-8")
    message = _refusal(path)
    assert message.startswith(f"{path}: {key}")
    assert words in message


def test_G1_there_are_at_least_40_bad_configurations() -> None:
    assert len(BAD_FILES) + len(BAD_OVERRIDES) >= 40


@pytest.mark.parametrize(("override", "start", "words"), BAD_OVERRIDES.values(), ids=BAD_OVERRIDES)
def test_G1_a_bad_override_is_named_as_such(tmp_path: Path, override: str, start: str, words: str) -> None:
    path = tmp_path / "good.toml"
    path.write_text('name = "good"\n[privacy.record]\nepsilon = 1.0\ndelta = 1e-5\n', encoding="utf-8")
    message = _refusal(path, override)
    assert message.startswith(start)
    assert words in message


@pytest.mark.parametrize("content", BAD_BYTES.values(), ids=BAD_BYTES)
def test_G1_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert _refusal(path).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["absent.toml", ".", "bad.toml/below"])
def test_G1_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.toml").touch()
    assert "cannot be read: " in _refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.toml"], "absent.toml: cannot be read: No such file or directory"),
        (["bad.toml"], "bad.toml: training.rounds: input should be a valid integer, not 'ten'"),
        (["bad.toml", "--set", "training.rounds=0"], "--set: training.rounds: "),
        (["bad.toml", "--engine", "spark"], '--engine: must be "local" or "ray"'),
    ],
)
def test_G1_the_command_answers_within_a_second_and_with_code_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "bad.toml").write_text('name = "bad"\n[training]\nrounds = "ten"\n')
    assert TACIT is not None
    started = _children_seconds()
    done = subprocess.run([TACIT, "simulate", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tacit: ") and done.stderr.count("\n") == 1
    assert words in done.stderr
    # Seconds of work, not of the clock: other processes may be busy on this machine.
    assert _children_seconds() - started < 1.0
    assert not (tmp_path / "runs").exists()


def _children_seconds() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_mistake_is_found_before_anything_slow_is_imported(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("nam = 1\n")
    program = (
        "import sys\nfrom tacit.cli import main\n"
        "try: main(['simulate', 'bad.toml'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'flwr', 'opacus', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    python = Path(sysconfig.get_path("scripts")) / "python"
    done = subprocess.run([python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "text",
    [
        'name = "x"',
        '\ufeffname = "x"\r\nseed = 3\r\n',
        'name = "x"\n[task]\nkind = "mine:Task"\n[data.schema]\nlabel = "y"',
        'name = "x"\n[partition]\nnum_clients = 127\n[secure_aggregation]\nprecision_bits = 24',
        'name = "x"\n[partition]\nkind = "natural"\ncolumn = "ward"\n[secure_aggregation]\nmax_corrupt = 30',
    ],
)
def test_canonical_text_reads_back_as_the_same_experiment(tmp_path: Path, text: str) -> None:
    path = tmp_path / "good.toml"
    path.write_bytes(text.encode())
    experiment = config.load(path)
    assert config.loads(experiment.to_toml()) == experiment


def test_overrides_are_toml_values_or_plain_text() -> None:
    overrides = ["seed=3", "data.dir=/some/where", "task.model.hidden=[8, 4]", "privacy=none"]
    text = 'name = "x"\n[privacy.record]\nepsilon = 1.0\ndelta = 1e-5'
    experiment = config.loads(text, overrides=overrides)
    assert (experiment.seed, experiment.data.dir) == (3, "/some/where")
    assert experiment.task.model.hidden == (8, 4)
    assert experiment.privacy == config.Privacy()


def test_an_experiment_cannot_be_changed() -> None:
    experiment = config.loads('name = "x"')
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 4  # type: ignore[misc]


def test_sites_that_contradict_the_experiment_are_refused() -> None:
    experiment = config.loads('name = "x"\n[privacy.record]\nepsilon = 1.0\ndelta = 0.01')
    sites = [{"label": str(i), "rows": 100 if i else 120} for i in range(10)]
    with pytest.raises(ConfigError, match=r"privacy\.record\.delta must be below 1/100"):
        experiment.with_tables(federation={"sites": sites})


def _documented() -> dict[str, str]:
    """Key -> default, from the tables of the page."""
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([\w.]+)` \| `?(.*?)`? \|", page, re.M))


def _keys(table: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for field_name, field in table.model_fields.items():
        name = prefix + (field.alias or field_name)
        below = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_table(kind)]
        if below:
            yield from _keys(below[0], f"{name}.")
        elif field.is_required():
            yield name, "required"
        else:
            default = field.get_default(call_default_factory=True)
            yield name, "none" if default is None else json.dumps(default)


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_the_page_of_keys_has_every_key_with_its_default() -> None:
    files = (*_keys(SitePolicy), *_keys(FederationFile), *_keys(Tuning, "tuning."))
    assert _documented() == dict([*_keys(config.Experiment), *files])


def test_the_error_on_the_page_is_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text('name = "x"\n[training]\nrounds = "ten"\n')
    with pytest.raises(ConfigError) as caught:
        config.load(Path("my.toml"))
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert f"tacit: {caught.value}\n" in page
