"""Series and windows of them, from tables in long and wide form: the arrays that an archive would hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.check import check_kit
from simulations.array_sources import load_arrays
from simulations.run import prepare
from tacit import config
from tacit.data.arrays import raw_arrays, read_arrays
from tacit.errors import ConfigError, DataError
from tacit.report.wording import protected
from tacit.tasks import load_task

LONG = """stay,hour,pulse,pressure,outcome,ward
a,0,80,120,stable,north
a,1,,110,stable,north
b,0,90,100,worse,south
a,2.5,70,100,stable,north
b,2,100,,worse,south
b,2.2,110,,worse,south
b,7,500,500,worse,south
b,-1,500,500,worse,south
"""
WIDE = """outcome,pulse_0,pulse_1,pulse_2,pressure_0,pressure_1,pressure_2,ward
stable,80,,70,120,110,100,north
worse,90,,105,100,,,south
"""
NAN = np.nan
X = [[[80, NAN, 70], [120, 110, 100]], [[90, NAN, 105], [100, NAN, NAN]]]
ARRAYS: dict[str, Any] = {
    "shape": [2, 3],
    "classes": ["stable", "worse"],
    "center": [80, 120],
    "scale": [20, 25],
}
SERIES = {
    "long": {"form": "long", "channels": ["pulse", "pressure"], "id": "stay", "time": "hour"},
    "wide": {"form": "wide", "channels": ["pulse", "pressure"]},
}
FILES = {"long": LONG, "wide": WIDE}


def experiment(form: str = "long", path: Path | str = "x.csv", /, **changed: Any) -> config.Experiment:
    series = {**SERIES[form], "label": "outcome", "site": "ward", **changed.pop("series", {})}
    arrays = {**ARRAYS, "missing": "indicator", "series": {k: v for k, v in series.items() if v is not None}}
    arrays = {k: v for k, v in {**arrays, **changed.pop("arrays", {})}.items() if v is not None}
    tables = {
        "name": "series",
        "task": {"kind": "array_classification", "model": {"name": "transformer", "hidden": [4]}},
        "data": {"source": "csv", "path": str(path), "arrays": arrays},
        **changed,
    }
    return config.parse(tables, source="")


def written(folder: Path, text: str, name: str = "data.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def schema_of(made: config.Experiment) -> Any:
    return made.data.arrays


@pytest.mark.parametrize("form", ["long", "wide"])
def test_both_forms_give_the_same_arrays_with_empty_steps_as_empty_places(form: str, tmp_path: Path) -> None:
    path, schema = written(tmp_path, FILES[form]), schema_of(experiment(form))
    found = raw_arrays(path, schema)
    np.testing.assert_array_equal(found["x"], np.array(X, dtype=np.float32))
    assert (found["y"].tolist(), found["site"].tolist()) == ([0, 1], ["north", "south"])
    x, y = read_arrays(path, schema, "train")
    assert x.shape == (2, 4, 3) and y.tolist() == [0, 1]
    np.testing.assert_allclose(x[0, 0], [0, 0, -0.5])
    assert x[0, 2:].tolist() == [[0, 1, 0], [0, 0, 0]] and x[1, 2:].tolist() == [[0, 1, 0], [0, 1, 1]]


def test_a_record_follows_from_the_rows_of_its_own_series_and_the_schema_alone(tmp_path: Path) -> None:
    more = LONG + "c,0,1,1,worse,south\nc,1,9,9,worse,south\n"
    windows = {"horizon": 1, "target": "pulse", "label": None, "test_from": 90.0}
    for series in ({}, windows):
        arrays = {"shape": [2, 2], "classes": None} if series else {}
        kind = "array_regression" if series else "array_classification"
        schema = schema_of(experiment(series=series, arrays=arrays, task={"kind": kind}))
        less, all_of_it = (raw_arrays(written(tmp_path, text), schema) for text in (LONG, more))
        num = len(less["y"])
        for name, values in less.items():
            np.testing.assert_array_equal(all_of_it[name][:num], values)


@pytest.mark.parametrize(
    ("form", "old", "new", "words"),
    [
        ("long", "hour", "time", "data.csv:1: the header lacks 'hour'"),
        ("long", "a,1,,110", ",1,,110", "data.csv:3: column 'stay': is empty"),
        ("long", "a,1,,110", "a,,,110", "data.csv:3: column 'hour': is empty"),
        ("long", "a,1,,110", "a,1,1e999,110", "data.csv:3: column 'pulse': is not a finite decimal number"),
        ("long", "110,stable", "110,worse", "data.csv:3: column 'outcome': is not what an earlier row"),
        ("long", "110,stable", "110,", "data.csv:3: column 'outcome': is empty"),
        ("long", "110,stable,north", "110,stable,south", "data.csv:3: column 'ward': is not what an earlier"),
        ("long", "worse", "bad", "data.csv:4: column 'outcome': is none of the 2 classes"),
        ("wide", "pulse_2", "pulse_3", "data.csv:1: the header lacks 'pulse_2'"),
        ("wide", "105", "1,05", "data.csv:3: has 9 cells where the header has 8"),
        ("wide", "105", "inf", "data.csv:3: column 'pulse_2': is not a finite decimal number"),
        ("wide", "worse", "bad", "data.csv:3: column 'outcome': is none of the 2 classes"),
    ],
)
def test_an_error_names_the_line_and_the_column(
    form: str, old: str, new: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_arrays(written(tmp_path, FILES[form].replace(old, new)), schema_of(experiment(form)), "train")
    assert "\n" not in str(caught.value)


def test_a_split_column_is_of_whole_series(tmp_path: Path) -> None:
    text = "".join(
        f"{line},{'split' if i == 0 else 'test' if line.startswith('b') else 'train'}\n"
        for i, line in enumerate(LONG.splitlines())
    )
    schema = schema_of(experiment(series={"split": "split"}))
    assert [len(read_arrays(written(tmp_path, text), schema, s)[1]) for s in ("train", "test")] == [1, 1]
    with pytest.raises(DataError, match=r"data.csv:2: column 'split': is neither \"train\" nor \"test\""):
        read_arrays(written(tmp_path, text.replace("train", "tarin")), schema, "train")


def hours(num: int, stays: int = 1) -> str:
    lines = [f"{s},{t},{100 * s + t},1,x,n" for s in range(stays) for t in range(num)]
    return "\n".join(["stay,hour,pulse,pressure,outcome,ward", *lines, ""])


def forecast(form: str = "long", path: Path | str = "x.csv", /, **series: Any) -> config.Experiment:
    windows = {"horizon": 2, "target": "pulse", "label": None, "site": None, "test_from": 8.0, **series}
    arrays = {"shape": [2, 3], "classes": None, "outputs": 2, "target_center": 5.0, "target_scale": 10.0}
    return experiment(form, path, series=windows, arrays=arrays, task={"kind": "array_regression"})


def test_a_window_is_what_is_known_and_what_comes_then_and_none_forecasts_both_sides(tmp_path: Path) -> None:
    path = written(tmp_path, hours(12))
    found = raw_arrays(path, schema_of(forecast()))
    starts = found["x"][:, 0, 0].astype(int)
    assert starts.tolist() == [0, 1, 2, 3, 5, 6, 7]  # 4 would forecast 7 and 8
    np.testing.assert_array_equal(found["x"][:, 0], starts[:, None] + np.arange(3))
    np.testing.assert_array_equal(found["y"], starts[:, None] + [3, 4])
    assert found["split"].tolist() == ["train"] * 4 + ["test"] * 3
    x, y = read_arrays(path, schema_of(forecast()), "train")
    np.testing.assert_allclose(y[:, 0], (starts[:4] + 3 - 5) / 10)
    assert x.shape == (4, 4, 3)


def test_windows_are_as_many_and_as_far_apart_as_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, hours(12, stays=2))
    strided = raw_arrays(path, schema_of(forecast(stride=2)))
    assert strided["x"][:, 0, 0].tolist() == [0, 2, 6, 100, 102, 106]
    latest = raw_arrays(path, schema_of(forecast(most_windows=2)))
    assert latest["x"][:, 0, 0].tolist() == [2, 3, 6, 7, 102, 103, 106, 107]
    assert latest["split"].tolist() == ["train", "train", "test", "test"] * 2
    gap = written(tmp_path, hours(12).replace("0,4,4,", "0,4,,"))
    known = raw_arrays(gap, schema_of(forecast()))["x"][:, 0, 0].tolist()
    assert known == [2, 3, 5, 6, 7]  # 0 and 1 would forecast step 4


def test_windows_of_a_wide_table_are_those_of_a_long_one(tmp_path: Path) -> None:
    names = [f"{channel}@{step}" for channel in ("pulse", "pressure") for step in range(12)]
    rows = [",".join([*(str(100 * s + t) for t in range(12)), *["1"] * 12]) for s in range(2)]
    wide = written(tmp_path, "\n".join([",".join(names), *rows]), "wide.csv")
    made = forecast("wide", columns="{channel}@{step}", length=12)
    one, other = (
        raw_arrays(wide, schema_of(made)),
        raw_arrays(written(tmp_path, hours(12, 2)), schema_of(forecast())),
    )
    assert set(one) == set(other) == {"x", "y", "split"}
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (hours(4), "data.csv: has no series of 5 steps"),
        (
            hours(12).replace(",3,3,", ",3e12,3,"),
            "data.csv:5: column 'hour': is step 3000000000000, and so many do",
        ),
        (
            "stay,hour,pulse,pressure\n0,0,,1\n0,9,,1\n",
            "data.csv: column 'pulse': has no window whose horizon",
        ),
    ],
)
def test_a_table_without_windows_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_arrays(written(tmp_path, text), schema_of(forecast()), "train")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"series": {"time": None}}, 'form = "long" needs id and time'),
        ({"series": {"form": "wide", "id": None, "time": None, "columns": "{step}"}}, "must have {channel}"),
        ({"series": {"label": None}}, "state label"),
        ({"series": {"label": "pulse"}}, "must be different columns"),
        ({"series": {"stride": 2}}, "belong to horizon"),
        ({"series": {"label": None, "horizon": 1, "target": "weight"}}, "target must be one of the channels"),
        ({"series": {"label": None, "horizon": 1, "target": "pulse"}}, "needs either test_from or split"),
        ({"series": {"step": 0.0}}, r"data\.arrays\.series\.step"),
        (
            {"arrays": {"shape": [3, 3], "center": 0.0, "scale": 1.0}},
            "as many channels as series.channels names",
        ),
        ({"arrays": {"outputs": 2}}, "outputs must be"),
        ({"arrays": {"series": None}}, 'source = "csv" with data.arrays needs data.arrays.series'),
        (
            {"series": {"form": "wide", "id": None, "time": None, "label": "pulse_0"}},
            "'pulse_0' is a step, so it can be no label",
        ),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment(**changed)


@pytest.mark.parametrize("form", ["long", "wide"])
def test_a_simulated_site_trains_on_what_a_site_with_the_table_reads(form: str, tmp_path: Path) -> None:
    """The one reads an archive that the simulation wrote, the other the table: every bit is the same."""
    rng = np.random.default_rng(1)
    channels = np.round(rng.normal(90, 10, (40, 2, 3)), 1)
    names = [f"{c}_{t}" for c in ("pulse", "pressure") for t in range(3)]
    if form == "wide":
        lines = [",".join(["outcome", "ward", *names])]
        lines += [
            f"{('stable', 'worse')[i % 2]},{i % 2 + 1},{','.join(map(str, x.ravel()))}"
            for i, x in enumerate(channels)
        ]
    else:
        lines = ["stay,hour,pulse,pressure,outcome,ward"]
        lines += [
            f"s{i},{t},{x[0, t]},{x[1, t]},{('stable', 'worse')[i % 2]},{i % 2 + 1}"
            for i, x in enumerate(channels) for t in range(3)
        ]  # fmt: skip
    path = written(tmp_path, "\n".join(lines), "all.csv")
    made = experiment(
        form,
        path,
        partition={"kind": "natural", "column": "site", "num_clients": 2, "min_rows": 2},
        secure_aggregation={"enabled": False},
    )
    prepared = prepare(
        made.with_tables(data=made.data.model_copy(update={"test_fraction": 0.0})), tmp_path / "run"
    )
    task = load_task(prepared.experiment)
    for site, label in enumerate(s.label for s in prepared.sites):
        own = [
            line
            for line in lines[1:]
            if (line.split(",")[1] if form == "wide" else line.split(",")[-1]) == label
        ]
        table = written(tmp_path, "\n".join([lines[0], *own]), f"{label}.csv")
        ours, theirs = task.read(prepared.data_path(site), "train"), task.read(table, "train")
        assert torch.equal(ours.features, theirs.features) and torch.equal(ours.targets, theirs.targets)
        assert theirs.num_rows == 20


def test_a_forecast_is_divided_by_time_in_a_simulation_too(tmp_path: Path) -> None:
    found = load_arrays(forecast("long", written(tmp_path, hours(12))).data, 7)
    assert found is not None and found.split is not None
    assert found.split.tolist() == ["train"] * 4 + ["test"] * 3 and found.y.shape == (7, 2)


def test_a_site_checks_its_table_and_counts_series(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('label = "one"\ndata_set = "one"\n')
    for text, state in ((LONG, "ok"), (LONG.replace("worse", "bad"), "fail")):
        written(tmp_path, text)
        found = check_kit(tmp_path, experiment(), connects=False)
        assert [f.state for f in found if f.what == "schema"] == [state], found
    written(tmp_path, LONG)
    found = check_kit(tmp_path, experiment(), connects=False)
    assert [f.text for f in found if f.what == "data"] == [f"{tmp_path / 'data.csv'}, 2 rows"]


def test_the_statement_says_what_one_record_is() -> None:
    def said(made: config.Experiment) -> str:
        return protected("record", made.model_dump(mode="json", by_alias=True, exclude_none=True))

    assert "one whole series of one site" in said(experiment())
    assert "One measurement is in up to 5 windows, and a person's series makes as many as fit" in said(
        forecast()
    )
    assert "is in up to 2 windows, and a person's series makes 2" in said(forecast(stride=1, most_windows=2))
    assert "is in up to 3 windows" in said(forecast(stride=2))
    assert "one row of one site's table" in said(config.parse({"name": "table"}, source=""))
