"""A schema guessed from a file fits the file."""

from pathlib import Path

import numpy as np
import pytest

from tacit.data.infer import infer_schema
from tacit.data.preprocessing import transform
from tacit.data.readers import read_table
from tacit.data.schema import CategoricalColumn, NumericColumn
from tacit.errors import DataError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "any.csv"
    path.write_text(text)
    return path


def test_numbers_names_classes_site_and_split_are_found(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "age,sex,level,empty,same,site,split,y\n"
        "40,f,10,,7,A,train,2\n60,m,9,?,7,A,train,10\n,f,x,,7,B,test,2.0\n",
    )
    schema = infer_schema(read_table(path, None), "y")
    assert schema.classes == ("2.0", "10") or schema.classes == ("2", "10")
    assert (schema.site, schema.split) == ("site", "split")
    assert list(schema.columns) == ["age", "sex", "level", "same"]
    assert schema.columns["age"] == NumericColumn(kind="numeric", range=(40.0, 60.0))
    assert schema.columns["sex"] == CategoricalColumn(kind="categorical", categories=("f", "m"))
    assert schema.columns["level"] == CategoricalColumn(kind="categorical", categories=("9", "10", "x"))
    assert schema.columns["same"] == NumericColumn(kind="numeric", center=7.0, scale=1.0)
    features, labels = transform(read_table(path, schema), schema, split="train")
    assert features[:, 0].tolist() == [-1, 1]
    assert labels.tolist() == [0, 1]


def test_parquet_is_inferred_too(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "any.parquet"
    pq.write_table(pa.table({"a": np.array([1.0, 3.0]), "b": ["u", "v"], "y": [0, 1]}), path)
    schema = infer_schema(read_table(path, None), "y")
    features, labels = transform(read_table(path, schema), schema, split="train")
    assert features.tolist() == [[-1, 1, 0], [1, 0, 1]]
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,y\n1,0\n2,0\n", "fewer than two classes"),
        ("a,b\n1,0\n", "column 'y': is not in the file"),
        ("y\n0\n1\n", "no schema can be inferred"),
        ("a,y\n" + "".join(f"name{i},{i % 2}\n" for i in range(101)), "more than 100 different names"),
        ("a,y\n" + "".join(f"1,{i}\n" for i in range(101)), "more than 100 different names"),
    ],
)
def test_what_has_no_schema_is_said(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        infer_schema(read_table(written(tmp_path, text), None), "y")
