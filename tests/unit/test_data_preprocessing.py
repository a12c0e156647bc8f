"""Features and labels come from the declared schema alone."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tacit.data.preprocessing import transform
from tacit.data.readers import read_table
from tacit.data.schema import CategoricalColumn, Column, NumericColumn, Schema, match_key
from tacit.errors import ConfigError, DataError


def features(tmp_path: Path, column: Column, *cells: str, **schema: object) -> np.ndarray:
    """The features of one column `x` in a file that holds these cells."""
    path = tmp_path / "site.csv"
    path.write_text("x,y\n" + "".join(f'"{cell}",0\n' for cell in cells))
    declared = Schema.model_validate({"label": "y", "columns": {"x": column}, **schema})
    table = read_table(path, declared)
    features, labels = transform(table, declared, split="train")
    assert (features.dtype, labels.dtype) == (np.float32, np.int64)
    assert features.shape[1] == len(declared.feature_names)
    return features


def numeric(**fields: object) -> NumericColumn:
    return NumericColumn.model_validate({"kind": "numeric", **fields})


def test_a_number_is_scaled_by_its_range_or_center_and_scale_and_cut(tmp_path: Path) -> None:
    by_range = features(tmp_path, numeric(range=(0, 10)), "0", "5", "10", "100", "-1e308", "1e308")
    assert by_range[:, 0].tolist() == [-1, 0, 1, 3, -3, 3]
    stated = features(tmp_path, numeric(center=55, scale=10, clip=2, range=(0, 1)), "45", "55", "99")
    assert stated[:, 0].tolist() == [-1, 0, 2]


def test_log_spreads_amounts_and_keeps_their_sign(tmp_path: Path) -> None:
    ends = features(tmp_path, numeric(transform="log", range=(-999, 999)), "-999", "0", "999", "1e308")
    assert ends[:, 0] == pytest.approx([-1, 0, 1, 3])
    e = np.e
    stated = features(tmp_path, numeric(transform="log", center=1, scale=2), f"{e - 1}", f"{1 - e}")
    assert stated[:, 0] == pytest.approx([0, -1])


def test_an_empty_number_is_the_center_or_the_stated_value(tmp_path: Path) -> None:
    assert features(tmp_path, numeric(range=(0, 10)), "", "10")[:, 0].tolist() == [0, 1]
    stated = features(tmp_path, numeric(range=(0, 10), missing=10, indicator=True), "", "10", "5")
    assert stated.tolist() == [[1, 1], [1, 0], [0, 0]]
    dropped = features(tmp_path, numeric(range=(0, 10)), "", "10", "?", missing_rows="drop")
    assert dropped.tolist() == [[1]]


def test_a_category_is_one_hot_by_value(tmp_path: Path) -> None:
    colours = CategoricalColumn(kind="categorical", categories=("red", "1", "2.50"))
    got = features(tmp_path, colours, "red", "1.0", "2.5", "green", "", "RED", "+1e0")
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert got.tolist() == expected
    assert features(tmp_path, colours, "", "red", missing_rows="drop").tolist() == [[1, 0, 0]]


def test_G2_unseen_category_is_refused_where_the_schema_says_so(tmp_path: Path) -> None:
    strict = CategoricalColumn(kind="categorical", categories=("red",), unseen="error")
    assert features(tmp_path, strict, "red", "").tolist() == [[1], [0]]
    with pytest.raises(DataError, match=r"site.csv:3: column 'x': is none of the 1 categories") as caught:
        features(tmp_path, strict, "red", "Zx9-canary")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "reason"),
    [("2", "is none of the 2 classes"), ("yes", "is none"), ("", "is empty"), ("1e999", "is none")],
)
def test_G4_label_out_of_range_is_refused_with_its_line(tmp_path: Path, label: str, reason: str) -> None:
    path = tmp_path / "site.csv"
    path.write_text(f"x,y\n1,0\n1,1.0\n1,{label}\n")
    schema = Schema(label="y", columns={"x": numeric(range=(0, 1))})
    with pytest.raises(DataError, match=f"site.csv:4: column 'y': {reason}"):
        transform(read_table(path, schema), schema, split="train")


def test_classes_are_numbered_by_their_position(tmp_path: Path) -> None:
    path = tmp_path / "site.csv"
    path.write_text("x,y\n1,sick\n1,well\n1,sick\n")
    schema = Schema(label="y", classes=("well", "sick"), columns={"x": numeric(range=(0, 1))})
    assert transform(read_table(path, schema), schema, split="train")[1].tolist() == [1, 0, 1]


def test_the_split_column_selects_rows(tmp_path: Path) -> None:
    path = tmp_path / "site.csv"
    path.write_text("x,y,s\n1,0,train\n2,1,test\n3,1,train\n")
    schema = Schema(label="y", columns={"x": numeric(center=0, scale=1)}, split="s")
    table = read_table(path, schema)
    assert transform(table, schema, split="train")[0].tolist() == [[1], [3]]
    assert transform(table, schema, split="test")[1].tolist() == [1]
    unsplit = schema.model_copy(update={"split": ""})
    assert len(transform(table, unsplit, split="train")[0]) == 3
    assert transform(table, unsplit, split="test")[0].shape == (0, 1)
    with pytest.raises(ValueError, match="split must be one of"):
        transform(table, schema, split="valid")
    path.write_text("x,y,s\n1,0,train\n2,1,Test\n")
    with pytest.raises(DataError, match=":3: column 's'"):
        transform(read_table(path, schema), schema, split="train")


def test_federated_scaling_uses_the_constants_and_refuses_without(tmp_path: Path) -> None:
    path = tmp_path / "site.csv"
    path.write_text("x,y\n7,0\n,1\n")
    schema = Schema(label="y", columns={"x": numeric(range=(0, 10))}, scaling="federated")
    table = read_table(path, schema)
    with pytest.raises(ConfigError, match="statistics round"):
        transform(table, schema, split="train")
    assert transform(table, schema, split="train", constants={"x": (5.0, 2.0)})[0].tolist() == [[1], [0]]


@pytest.mark.parametrize(
    "column",
    [
        {"kind": "numeric"},
        {"kind": "numeric", "range": [1, 1]},
        {"kind": "numeric", "range": [2, 1]},
        {"kind": "numeric", "range": [0, float("inf")]},
        {"kind": "numeric", "range": [1e300, 1.00000000000001e300], "transform": "log"},
        {"kind": "numeric", "center": 1},
        {"kind": "numeric", "center": 0, "scale": 0},
        {"kind": "numeric", "center": 0, "scale": 1, "clip": 1e40},
        {"kind": "categorical", "categories": []},
        {"kind": "categorical", "categories": ["1", "1.0"]},
        {"kind": "categorical", "categories": ["a", "?"]},
        {"kind": "text"},
    ],
)
def test_G1_impossible_columns_are_refused(column: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Schema.model_validate({"label": "y", "columns": {"x": column}})


def test_names_match_by_value() -> None:
    same = [("1", "1.0"), ("1", " 1e0 "), ("-0", "0"), ("0.10", ".1"), ("a", " a")]
    different = [("a", "A"), ("1", "1.0000000000000000000001"), ("1", "one"), ("1", "1_0"), ("1", "0x1")]
    assert all(match_key(a) == match_key(b) for a, b in same)
    assert not any(match_key(a) == match_key(b) for a, b in different)
    assert match_key("1e99999999999999999999") == "1e99999999999999999999"
