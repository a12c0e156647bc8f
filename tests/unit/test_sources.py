"""Built-in sources and files of the user's; downloads go to a server of the test's own."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from simulations import sources
from simulations.download import download
from simulations.sources import load_source
from tacit import config
from tacit.data.preprocessing import transform
from tacit.data.readers import read_table
from tacit.data.schema import NumericColumn, Schema
from tacit.errors import ConfigError, DataError

HEART = {
    "cleveland": "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n"
    "67.0,1.0,4.0,160.0,286.0,0.0,2.0,108.0,1.0,1.5,2.0,?,?,2\n",
    "hungarian": "28,1,2,130,132,0,2,185,0,0,?,?,?,0\n29,1,2,120,243,?,0,160,0,0,?,?,?,0\n",
    "switzerland": "32,1,1,95,0,?,0,127,0,.7,1,?,?,1\n34,1,4,115,0,0,1,154,0,-.2,1,?,?,4\n",
    "va": "63,1,4,140,260,0,1,112,1,3,2,?,?,2\n44,1,4,?,209,0,1,127,0,0,?,?,?,0\n",
}
HEADER = ",".join(sources.HEART_COLUMNS) + "\n"
ORIGINAL: Callable[[str], str] = str
WITH_HEADER: Callable[[str], str] = lambda text: HEADER + text.replace("?", "")  # noqa: E731

CREDIT_HEADER = "ID,LIMIT_BAL,SEX,EDUCATION,MARRIAGE,AGE,PAY_0,PAY_2,PAY_3,PAY_4,PAY_5,PAY_6," + (
    ",".join([f"BILL_AMT{i}" for i in range(1, 7)] + [f"PAY_AMT{i}" for i in range(1, 7)])
)
CREDIT_ROWS = (
    "1,20000,2,2,1,24,2,2,-1,-1,-2,-2,3913,3102,689,0,0,0,0,689,0,0,0,0,1\n"
    "2,120000,2,5,0,26,-1,2,0,0,0,2,-2682,1725,2682,3272,3455,3261,0,1000,1000,1000,0,2000,0\n"
)
CREDIT_HEADERS = {
    "spreadsheet": CREDIT_HEADER + ",default payment next month",
    "dotted": CREDIT_HEADER + ",default.payment.next.month",
    "numbered months": CREDIT_HEADER.replace("PAY_0", "PAY_1") + ",default.payment.next.month",
    "generated": "ID," + ",".join(f"X{i}" for i in range(1, 24)) + ",Y",
}


def written_and_read(frame, schema: Schema, tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a site gets that is handed the whole frame as a CSV file."""
    path = tmp_path / "site.csv"
    frame.to_csv(path, index=False)
    return transform(read_table(path, schema), schema, split="train")


def test_breast_cancer_lies_within_its_declared_ranges(tmp_path: Path) -> None:
    frame, schema = load_source(config.Data())
    features, labels = written_and_read(frame, schema, tmp_path)
    assert features.shape == (569, 30)
    assert labels.sum() == 212
    assert (frame["diagnosis"] == "malignant").sum() == 212
    assert list(schema.columns) == list(frame.columns[:-1])
    # The published table is rounded to three decimals, so the ends are met to that.
    assert np.abs(features).max() < 1.1
    assert np.median(np.abs(features).max(axis=0)) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("form", [ORIGINAL, WITH_HEADER])
def test_heart_disease_reads_both_forms_of_the_files(tmp_path: Path, form: Callable[[str], str]) -> None:
    for site, text in HEART.items():
        (tmp_path / f"processed.{site}.data").write_text(form(text))
    frame, schema = load_source(config.Data(source="heart_disease", dir=str(tmp_path)))
    assert frame["site"].tolist() == ["cleveland", "cleveland", "hungarian", "switzerland", "va"]
    assert frame["target"].tolist() == [0, 1, 0, 1, 1]
    assert not {"slope", "ca", "thal"} & set(frame.columns)
    assert (schema.site, schema.missing_rows) == ("site", "drop")
    features, _ = written_and_read(frame, schema, tmp_path)
    by_name = dict(zip(schema.feature_names, features[0], strict=True))
    assert len(by_name) == 15
    assert by_name["age"] == pytest.approx((63 - 55) / 10)
    assert by_name["trestbps"] == pytest.approx((145 - 130) / 20)
    assert by_name["chol"] == pytest.approx((233 - 220) / 80)
    assert by_name["thalach"] == pytest.approx((150 - 140) / 25)
    assert (by_name["sex"], by_name["fbs"], by_name["exang"]) == (1, 1, 0)
    assert (by_name["cp=1"], by_name["cp=4"], by_name["restecg=2"]) == (1, 0, 1)


@pytest.mark.parametrize("header", CREDIT_HEADERS)
@pytest.mark.parametrize("name", sources.CREDIT_FILES)
def test_credit_default_reads_every_known_header(tmp_path: Path, header: str, name: str) -> None:
    (tmp_path / name).write_text(f"{CREDIT_HEADERS[header]}\n{CREDIT_ROWS}")
    frame, schema = load_source(config.Data(source="credit_default", dir=str(tmp_path)))
    assert "ID" not in frame.columns
    assert list(frame.columns) == [*schema.columns, "default_next_month"]
    features, labels = written_and_read(frame, schema, tmp_path)
    assert labels.tolist() == [1, 0]
    second = dict(zip(schema.feature_names, features[1], strict=True))
    assert [second[f"EDUCATION={i}"] for i in (1, 2, 3, 4)] == [0, 0, 0, 0]  # 5 has no description
    assert second["PAY_0"] == -0.5
    assert second["BILL_AMT1"] == pytest.approx(-3)
    assert second["PAY_AMT2"] == pytest.approx((np.log(1001) - 6) / 4)


@pytest.mark.parametrize(
    ("source", "folder", "rows"),
    [
        (
            "heart_disease",
            "heart-disease",
            {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130},
        ),
        ("credit_default", "credit-default", None),
    ],
)
def test_published_files_have_the_published_rows(
    source: str, folder: str, rows: dict[str, int] | None
) -> None:
    root = os.environ.get("TACIT_TEST_DATA")
    if not root:
        pytest.skip("TACIT_TEST_DATA does not name a folder with the published files")
    frame, schema = load_source(config.Data.model_validate({"source": source, "dir": f"{root}/{folder}"}))
    if rows is None:
        assert frame.shape == (30_000, 24)
        assert frame[schema.label].sum() == 6636
    else:
        assert frame[schema.site].value_counts().to_dict() == rows


def test_a_declared_schema_takes_the_place_of_the_sources_own() -> None:
    schema = Schema(label="diagnosis", classes=("malignant", "benign"), columns={"mean area": AREA})
    frame, got = load_source(config.Data(schema=schema))
    assert got == schema
    assert frame.shape == (569, 31)


AREA = NumericColumn(kind="numeric", range=(100, 3000))


def test_a_file_of_the_users_keeps_all_columns_and_infers_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    path.write_text("x,colour,ward,target\n1,red,A,0\n?,blue,B,1\n3,,A,1\n")
    frame, schema = load_source(config.Data(source="csv", path=str(path)))
    assert schema.label == "target"
    assert list(schema.columns) == ["x", "colour", "ward"]
    declared = Schema(label="target", columns={"x": NumericColumn(kind="numeric", range=(0, 4))})
    frame, schema = load_source(config.Data(source="csv", path=str(path), schema=declared))
    assert schema == declared
    assert frame["ward"].tolist() == ["A", "B", "A"]
    features, labels = written_and_read(frame, schema, tmp_path)
    assert features.tolist() == [[-0.5], [0], [0.5]]
    assert labels.tolist() == [0, 1, 1]


def test_a_parquet_file_of_the_users_is_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "any.parquet"
    pandas.DataFrame({"x": [1.0, None], "c": ["u", "v"], "y": [0, 1]}).to_parquet(path)
    frame, schema = load_source(config.Data(source="parquet", path=str(path)))
    assert list(schema.columns) == ["x", "c"]
    assert written_and_read(frame, schema, tmp_path)[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        ({"source": "heart_disease", "dir": "nowhere"}, DataError, r"processed.cleveland.data: is not there"),
        (
            {"source": "credit_default", "dir": "nowhere"},
            DataError,
            r"data.csv: is not there: .* UCI_Credit_Card",
        ),
        ({"source": "csv", "path": "absent.csv"}, DataError, r"absent.csv: cannot be read: No such file"),
        ({"source": "parquet", "path": "x.csv"}, DataError, "set data.source"),
        ({"source": "csv", "path": "x.parquet"}, DataError, "set data.source"),
        ({"source": "task"}, ConfigError, "data.source: this task brings its own data"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(data: dict[str, str], error: type, reason: str) -> None:
    with pytest.raises(error, match=reason) as caught:
        load_source(config.Data.model_validate(data))
    assert "\n" not in str(caught.value)


def test_a_bad_row_of_the_users_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    path.write_text("x,y\n1,0\nZx9-canary,1\n")
    declared = Schema(label="y", columns={"x": NumericColumn(kind="numeric", range=(0, 4))})
    with pytest.raises(DataError, match=r"any.csv:3: column 'x'") as caught:
        load_source(config.Data(source="csv", path=str(path), schema=declared))
    assert "canary" not in str(caught.value)
    path.write_text("x,z\n1,0\n")
    with pytest.raises(DataError, match="no column is called label"):
        load_source(config.Data(source="csv", path=str(path)))


class _Files(BaseHTTPRequestHandler):
    """Serves the heart files, a truncated answer and nothing else."""

    def __init__(self, asked: list[str], *args: object) -> None:
        self.asked = asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        site = self.path.split(".")[-2] if self.path.endswith(".data") else ""
        if site not in HEART and self.path != "/short":
            self.send_error(404)
            return
        body = HEART.get(site, "half").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + (self.path == "/short")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server on this machine in the archive's place; its address and what was asked of it."""
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, asked)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(sources, "UCI", address)
        monkeypatch.setattr(sources, "CREDIT_URL", f"{address}/data.csv")
        yield address, asked
        server.shutdown()
        thread.join()


def test_a_source_is_downloaded_once_into_the_cache(
    web: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sources, "HOSPITALS", dict.fromkeys(HEART, 2))
    for _ in range(2):
        frame, _ = load_source(config.Data(source="heart_disease"))
        assert len(frame) == 5
    assert len(web[1]) == 4
    assert sorted(p.name for p in (tmp_path / "cache/tacit/heart-disease").iterdir()) == [
        f"processed.{site}.data" for site in sorted(HEART)
    ]
    assert capsys.readouterr().out == ""  # progress is for the terminal, not for standard output


def test_a_download_with_other_rows_than_published_is_not_kept(
    web: tuple[str, list[str]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="2 lines where 303 are published"):
        load_source(config.Data(source="heart_disease"))
    assert not (tmp_path / "cache").exists()


def test_a_download_that_fails_says_where_to_put_the_file(web: tuple[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.csv: cannot be had from http.*Not Found.*or set data\.dir"):
        load_source(config.Data(source="credit_default"))
    target = tmp_path / "x"
    with pytest.raises(DataError, match="4 of 5 bytes arrived"):
        download(f"{web[0]}/short", target, lambda content: "")
    with pytest.raises(DataError, match="refused"):
        download("http://127.0.0.1:1/x", target, lambda content: "")
    assert not target.exists()
