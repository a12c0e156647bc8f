"""K3, K4: what is read cannot run, and no generator that can be guessed makes a secret.

K3 reads the source. K4 hands hostile files to the reader of checkpoints: by their manifest they are what was written,
so all that stands between them and the process is the format of the model itself.
"""

import ast
import hashlib
import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from server.state import RunState
from strategies.rounds import Progress
from tacit.errors import ProtocolError
from tests.architecture.sources import ROOT, modules, tree
from tests.architecture.test_imports import imported, is_within

CODE_IN_DATA = (
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
    "yaml",
    "jsonpickle",
)
# Where secrets, noise and draws are made. (`tacit.tasks` fixes initial weights by seed, on purpose.)
SECRET = ("tacit/secagg/", "tacit/privacy/", "client/")
GENERATORS = (
    "random",
    "numpy.random",
    "np.random",
    "torch.random",
    "torch.Generator",
    "torch.default_generator",
)
DRAWS = (
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli",
    "multinomial", "poisson", "manual_seed", "seed",
)  # fmt: skip
# A model may draw itself (dropout); it does so from the stream's key, and the caller's generator is put back.
ALLOWED = {
    "client/draws.py": {
        "torch.Generator",
        "torch.random",
        "torch.random.fork_rng",
        "torch.default_generator",
        "torch.cuda.manual_seed",
    },
    # What a generator of rows draws protects nothing and hides nothing: it is added to no sum.
    "client/following.py": {"torch.Generator"},
    # Views hide nothing: the noise protects a record whatever its views are.
    "client/views.py": {"torch.Generator"},
}


def unsafe(path: str, module: ast.Module) -> Iterator[str]:
    """What in a file reads code as data, or draws from a generator where that is forbidden."""
    for node in ast.walk(module):
        for name in imported(node):
            if any(is_within(name, banned) for banned in CODE_IN_DATA):
                yield name
            if path.startswith(SECRET) and is_generator(name):
                yield name
        if isinstance(node, ast.Call):
            yield from unsafe_call(node)
        if isinstance(node, ast.Attribute) and path.startswith(SECRET):
            name = ast.unparse(node)
            if is_generator(name) or (node.attr.removesuffix("_") in DRAWS and node.attr.endswith("_")):
                yield name


def is_generator(name: str) -> bool:
    """Whether a full name is a generator of NumPy, torch or `random`, or a function that draws from one."""
    library, _, function = name.partition(".")
    return any(is_within(name, g) for g in GENERATORS) or (library == "torch" and function in DRAWS)


def unsafe_call(node: ast.Call) -> Iterator[str]:
    name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
    if name in ("eval", "exec", "compile", "os.system", "torch.save"):
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield name
    if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
        yield name
    if given.get("shell", "False") != "False":
        yield f"{name} in a shell"


def test_K3_nothing_that_is_read_can_run_and_no_guessable_generator_makes_a_secret() -> None:
    found = {
        path: names
        for path in modules()
        if (names := set(unsafe(path, tree(path))) - ALLOWED.get(path, set()))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("server/state.py", "import pickle"),
        ("server/state.py", "def f():\n    from joblib import load"),
        ("tacit/config.py", "import yaml"),
        ("server/state.py", "torch.load(path)"),
        ("server/state.py", "torch.load(path, weights_only=False)"),
        ("client/sessions.py", "np.load(file, allow_pickle=True)"),
        ("client/sessions.py", "np.load(file, allow_pickle=flag)"),
        ("tacit/tasks/task.py", "eval(text)"),
        ("tacit/tasks/task.py", "exec(text)"),
        ("server/superlink.py", "subprocess.run(command, shell=True)"),
        ("tacit/secagg/prg.py", "import random"),
        ("tacit/privacy/noise.py", "from numpy.random import default_rng"),
        ("tacit/privacy/noise.py", "np.random.default_rng().normal()"),
        ("client/training.py", "torch.randperm(n)"),
        ("client/training.py", "torch.normal(0, 1, size)"),
        ("client/training.py", "parameter.normal_(0, 1)"),
        ("client/training.py", "torch.manual_seed(0)"),
        ("client/training.py", "from torch import randn"),
        ("client/training.py", "generator = torch.Generator()"),
    ],
)
def test_K3_what_is_unsafe_is_seen(path: str, source: str) -> None:
    assert list(unsafe(path, ast.parse(source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("client/evaluation.py", "model.eval()"),
        ("client/training.py", "stream.bernoulli(n, q)"),
        ("client/sessions.py", "np.load(file, allow_pickle=False)"),
        ("simulations/partition/kinds.py", "np.random.default_rng(seed)"),
        ("tacit/secagg/client.py", "secrets.token_bytes(32)"),
    ],
)
def test_K3_what_is_safe_is_let_through(path: str, source: str) -> None:
    assert list(unsafe(path, ast.parse(source))) == []


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file: eight bytes of length, a JSON header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "nothing": b"",
    "a header of 1e9 bytes that are not there": safetensors({"w": tensor([1], 0, 4)}, bytes(4), 10**9),
    "a header of 2**63 bytes": safetensors({"w": tensor([1], 0, 4)}, bytes(4), 2**63),
    "tensors that overlap": safetensors({"v": tensor([2], 0, 8), "w": tensor([2], 4, 12)}, bytes(12)),
    "a gap between tensors": safetensors({"v": tensor([1], 0, 4), "w": tensor([1], 8, 12)}, bytes(12)),
    "data cut short": safetensors({"w": tensor([4], 0, 16)}, bytes(12)),
    "data behind the last tensor": safetensors({"w": tensor([1], 0, 4)}, bytes(400)),
    "a tensor of 8 TB": safetensors({"w": tensor([2**41], 0, 2**43)}, bytes(4)),
    "a shape larger than its data": safetensors({"w": tensor([2**41], 0, 4)}, bytes(4)),
    "a shape that overflows": safetensors({"w": tensor([2**62, 4], 0, 4)}, bytes(4)),
    "offsets that go back": safetensors({"w": tensor([1], 4, 0)}, bytes(4)),
    "a dtype that is none": safetensors({"w": tensor([1], 0, 4, "O")}, bytes(4)),
    "a dtype that numpy does not have": safetensors({"w": tensor([2], 0, 4, "BF16")}, bytes(4)),
    "a header that is no JSON": safetensors(b'{"w": ' * 1000),
    "a header of brackets": safetensors(b"[" * 100_000),
    "a list for a header": safetensors([1, 2, 3]),
}


def checkpoint_with(folder: Path, model: bytes) -> None:
    """A checkpoint of which everything is genuine, and which vouches for `model` in the place of its own."""
    state = RunState(folder, "", keep=3)
    state.save(Progress(1, {"w": np.ones(1, dtype=np.float32)}), {"round": 1})
    state.close()
    (manifest,) = folder.rglob("manifest.json")
    manifest.with_name("model.safetensors").write_bytes(model)
    hashes = json.loads(manifest.read_bytes())
    hashes["model.safetensors"] = hashlib.sha256(model).hexdigest()
    manifest.write_text(json.dumps(hashes))


LOAD_ALL = """
import resource, sys
from pathlib import Path
from server.state import RunState
from strategies.rounds import Progress
from tacit.errors import StorageError
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folders = sorted(Path(sys.argv[1]).iterdir())
before = peak()
for folder in folders:
    state = RunState(folder, "", 3)
    try:
        print(folder.name, "read", state.load())
    except StorageError:
        print(folder.name, "refused")
    state.close()
print(peak() - before)
"""


def test_K4_a_hostile_model_file_is_refused_without_taking_memory(tmp_path: Path) -> None:
    files = dict(HOSTILE)
    torch_like = np.zeros(3, dtype=np.float32)
    files["a pickle"] = pickle.dumps(Bomb(tmp_path / "exploded"))
    files["a pickle with a good header"] = safetensors({"w": tensor([1], 0, 4)}) + files["a pickle"]
    files["a zip archive"] = b"PK\x03\x04" + pickle.dumps(torch_like)
    for i, content in enumerate(files.values()):
        checkpoint_with(tmp_path / "runs" / f"{i:02d}", content)
    command = [sys.executable, "-W", "ignore", "-c", LOAD_ALL, str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *outcomes, kilobytes = done.stdout.splitlines()
    assert dict(zip(files, outcomes, strict=True)) == {
        name: f"{i:02d} refused" for i, name in enumerate(files)
    }
    assert int(kilobytes) < 64 * 1024
    assert not (tmp_path / "exploded").exists()


def test_K4_a_good_model_file_under_the_same_manifest_is_read(tmp_path: Path) -> None:
    checkpoint_with(tmp_path, safetensors({"w": tensor([1], 0, 4)}, struct.pack("<f", 0.5)))
    state = RunState(tmp_path, "", keep=3)
    progress = state.load()
    state.close()
    assert progress is not None and progress.arrays["w"].tolist() == [0.5]


def test_K4_a_pickle_in_an_array_from_the_server_is_not_unpickled(tmp_path: Path) -> None:
    from client.app import received_arrays
    from simulations.local_grid import identify_process

    identify_process()
    buffer = tmp_path / "array.npy"
    np.save(buffer, np.array([Bomb(tmp_path / "exploded")], dtype=object), allow_pickle=True)
    array = Array("float32", (1,), "numpy.ndarray", buffer.read_bytes())
    message = Message(RecordDict({"arrays": ArrayRecord({"w": array})}), 2, "train")
    with pytest.raises(ProtocolError, match="cannot be read"):
        received_arrays(message)
    assert not (tmp_path / "exploded").exists()
