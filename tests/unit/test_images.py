"""Images from folders, and what is said of one that is damaged, too large, or of another kind."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.check import check_kit
from client.site import Site, set_data
from simulations.run import prepare
from tacit import config
from tacit.data.arrays import read_arrays
from tacit.data.images import MOST_PIXELS, read_images
from tacit.data.readers import num_rows
from tacit.errors import ConfigError, DataError
from tacit.tasks import load_task

ARRAYS: dict[str, Any] = {
    "shape": [1, 6, 4],
    "classes": ["normal", "opacity"],
    "center": 0.5,
    "scale": 0.5,
    "images": {},
}


def experiment(
    path: Path | str = "x", /, arrays: dict[str, Any] = ARRAYS, **tables: Any
) -> config.Experiment:
    data = {"source": "images", "path": str(path), "arrays": arrays}
    task = {"kind": "array_classification", "model": {"name": "cnn", "channels": [2]}}
    return config.parse({"name": "images", "task": task, "data": data, **tables}, source="")


def schema(**changed: Any) -> Any:
    return experiment("x", {**ARRAYS, **changed}).data.arrays


def image(size: tuple[int, int] = (4, 6), mode: str = "L", seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode=None).convert(mode)


def folder(root: Path, num: int = 3, size: tuple[int, int] = (4, 6), mode: str = "L") -> Path:
    for c, name in enumerate(("normal", "opacity")):
        (root / name).mkdir(parents=True)
        for i in range(num):
            image(size, mode, 10 * c + i).save(root / name / f"{i}.{('png', 'JPG')[i % 2]}")
    (root / ".hidden").write_text("of a file manager")
    (root / "normal" / ".DS_Store").write_text("of another")
    return root


def test_pixels_are_from_0_to_1_and_classes_are_the_folders(tmp_path: Path) -> None:
    found = read_images(folder(tmp_path / "a"), schema())
    assert found["x"].shape == (6, 1, 6, 4) and found["y"].tolist() == [0, 0, 0, 1, 1, 1]
    stored = np.asarray(Image.open(tmp_path / "a" / "normal" / "0.png"), dtype=np.float32) / np.float32(255)
    np.testing.assert_array_equal(found["x"][0, 0], stored)
    x, _ = read_arrays(tmp_path / "a", schema(), "train")
    np.testing.assert_allclose(x[0, 0], (stored - 0.5) / 0.5, rtol=1e-6)
    colours = read_images(folder(tmp_path / "b", mode="RGB"), schema(shape=[3, 6, 4]))
    assert colours["x"].shape == (6, 3, 6, 4)
    assert num_rows(tmp_path / "a") == 6


def test_an_image_becomes_an_array_by_itself_of_the_declared_size(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", size=(12, 9))
    for fit in ("stretch", "crop"):
        declared = schema(images={"fit": fit})
        whole = read_images(path, declared)["x"]
        assert whole.shape == (6, 1, 6, 4)
    one = tmp_path / "one" / "opacity"
    one.mkdir(parents=True)
    (one / "0.png").write_bytes((path / "opacity" / "0.png").read_bytes())
    np.testing.assert_array_equal(
        read_images(tmp_path / "one", schema(images={"fit": "crop"}))["x"][0], whole[3]
    )
    stretched, cropped = (read_images(path, schema(images={"fit": f}))["x"] for f in ("stretch", "crop"))
    assert not np.array_equal(stretched, cropped)


def test_folders_train_and_test_are_the_split(tmp_path: Path) -> None:
    for part in ("train", "test"):
        folder(tmp_path / "a" / part, num=2 if part == "train" else 1)
    (tmp_path / "a" / "test" / "opacity" / "0.png").unlink()
    (tmp_path / "a" / "test" / "opacity").rmdir()  # a class may be absent
    for part, classes in (("train", [0, 0, 1, 1]), ("test", [0])):
        assert read_arrays(tmp_path / "a", schema(), part)[1].tolist() == classes
    (tmp_path / "a" / "other").mkdir()
    with pytest.raises(DataError, match="other: stands beside train and test"):
        read_arrays(tmp_path / "a", schema(), "train")


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG file of some bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_an_image_of_more_than_most_pixels_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = folder(tmp_path / "a") / "normal" / "0.png"
    for width, height in ((10_000, 10_000), (60_000, 60_000), (MOST_PIXELS + 1, 1)):
        bomb(path, width, height)
        with pytest.raises(DataError, match=r"normal/0.png: has .*more than the 50000000") as caught:
            read_images(tmp_path / "a", schema())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1", "I;16", "CMYK"])
def test_an_image_of_another_mode_is_refused_with_its_name(mode: str, tmp_path: Path) -> None:
    made = Image.new(mode, (4, 6))
    name = "0.jpg" if mode == "CMYK" else "0.png"
    made.save(folder(tmp_path / "a") / "normal" / name)
    with pytest.raises(DataError, match=rf"normal/{name}: is of mode {mode}, and 1 channels are mode L"):
        read_images(tmp_path / "a", schema())


def test_every_damaged_image_is_one_line_with_its_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    refused = 0
    for kind in ("png", "jpg"):
        path = folder(tmp_path / kind, num=1, size=(40, 30)) / "normal" / f"0.{kind}"
        image((40, 30)).save(path)
        whole = path.read_bytes()
        damaged = [whole[:n] for n in rng.integers(0, len(whole) - 2, 25)]
        for _ in range(60):
            changed = bytearray(whole)
            changed[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
            damaged.append(bytes(changed))
        for content in (b"", b"GIF89a", *damaged):
            path.write_bytes(content)
            said = ""
            try:
                read_images(tmp_path / kind, schema())
            except DataError as error:
                said = str(error)
            refused += bool(said)
            assert not said or (f"normal/0.{kind}: " in said and "\n" not in said)
    assert refused > 60


def test_what_does_not_belong_into_the_folder_is_refused_with_its_name(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    for name, words in (
        ("normal/notes.txt", "is no image"),
        ("stray.png", "stands outside of a class's folder"),
    ):
        (path / name).write_text("x")
        with pytest.raises(DataError, match=f"{name}: {words}"):
            read_images(path, schema())
        (path / name).unlink()
    (path / "benign").mkdir()
    image().save(path / "benign" / "0.png")
    with pytest.raises(DataError, match="benign: is named after none of the 2 classes"):
        read_images(path, schema())
    (tmp_path / "empty").mkdir()
    for absent in ("empty", "none"):
        with pytest.raises(DataError, match=f"{absent}: has no images"):
            read_images(tmp_path / absent, schema())


@pytest.mark.parametrize(
    "changed", [{"shape": [2, 6, 4]}, {"shape": [6, 4]}, {"classes": []}, {"several": True}]
)
def test_images_that_cannot_be_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r'source = "images" needs the table data\.arrays\.images'):
        schema(images=None)
    with pytest.raises(ConfigError, match=r"data\.arrays: images need shape = \[1 or 3, height, width\]"):
        schema(**changed)


def test_a_site_has_its_folder_checked_and_counted(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir(mode=0o700)
    (site / "site.toml").write_text('label = "one"\ndata_set = "one"\n')
    set_data(site, folder(site / "xrays"))
    assert Site.open(site).data == site / "xrays"
    found = check_kit(site, experiment(), connects=False)
    assert [(f.state, f.text) for f in found if f.what == "data"] == [("ok", f"{site / 'xrays'}, 6 rows")]
    assert [f.state for f in found if f.what == "schema"] == ["ok"]
    (site / "xrays" / "normal" / "0.png").write_bytes(b"no image")
    found = check_kit(site, experiment(), connects=False)
    assert ["0.png: is no image" in f.text for f in found if f.what == "schema"] == [True]


def test_a_simulated_site_trains_on_what_a_site_with_the_folder_reads(tmp_path: Path) -> None:
    path = folder(tmp_path / "all", num=20, size=(9, 9))
    made = experiment(path, partition={"num_clients": 1}, secure_aggregation={"enabled": False})
    made = made.with_tables(data=made.data.model_copy(update={"test_fraction": 0.0}))
    prepared = prepare(made, tmp_path / "run")
    task = load_task(prepared.experiment)
    ours, theirs = task.read(prepared.data_path(0), "train"), task.read(path, "train")
    order = [sorted(range(40), key=lambda i, r=r: r.features[i].flatten().tolist()) for r in (ours, theirs)]
    assert torch.equal(ours.features[order[0]], theirs.features[order[1]])
    assert torch.equal(ours.targets[order[0]], theirs.targets[order[1]])
