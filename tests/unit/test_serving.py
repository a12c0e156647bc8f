"""Predictions over gRPC, asked for by another project's client of the Open Inference Protocol."""

import logging
import re
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tacit.cli import main
from tacit.errors import ConfigError, StorageError
from tacit.inference.predictor import Predictor
from tacit.inference.serving import ModelServer, Tls
from tacit.inference.trained import Trained
from tests.front_world import Authority
from tests.unit.trained_runs import arrays_experiment, run_folder, site_file, text_experiment

triton = pytest.importorskip("tritonclient.grpc")
from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

LIMITS = {"max_rows": 8, "max_bytes": 64 * 1024}
NUMBERS = {np.dtype(np.float64): "FP64", np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(Trained.open(run_folder(tmp_path_factory.mktemp("run"))))


@pytest.fixture
def server(predictor: Predictor) -> Iterator[ModelServer]:
    started = ModelServer(predictor, host="127.0.0.1", port=0, tls=None, **LIMITS)
    yield started
    started.close()


@pytest.fixture
def client(server: ModelServer) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as asking:
        yield asking


def tensors(raw: dict[str, Any]) -> list[Any]:
    found = []
    for name, values in raw.items():
        tensor = triton.InferInput(name, list(values.shape), NUMBERS.get(values.dtype, "BYTES"))
        tensor.set_data_from_numpy(values)
        found.append(tensor)
    return found


def people(**changed: Any) -> dict[str, Any]:
    known = {
        "age": np.array([61.0, np.nan]),
        "amount of money": np.array([-1200.5, 0.0]),
        "class": np.array(["1.0", "2"], dtype=object),
        "sex": np.array(["f", "m"], dtype=object),
    }
    return {name: values for name, values in {**known, **changed}.items() if values is not None}


def test_a_triton_client_gets_what_the_model_predicts_of_raw_records(
    client: Any, predictor: Predictor, tmp_path: Path
) -> None:
    raw, _ = predictor.reader.read(site_file(tmp_path))
    raw = {name: values[:2] for name, values in raw.items()}
    answer = client.infer("a-run", tensors(raw), request_id="7")
    wanted = predictor.predict(raw)
    assert np.array_equal(answer.as_numpy("probabilities"), wanted["probabilities"])
    assert [text.decode() for text in answer.as_numpy("class_")] == wanted["class_"].tolist()
    assert answer.get_response().id == "7"


def test_a_model_of_text_is_sent_texts(tmp_path: Path) -> None:
    asked = Predictor(Trained.open(run_folder(tmp_path, text_experiment("embedding"))))
    raw = {"note": np.array(["Fever, cough", "", "NA", "fièvre"], dtype=object)}
    with (
        closing(ModelServer(asked, host="127.0.0.1", port=0, tls=None, **LIMITS)) as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        (told,) = client.get_model_metadata("notes").inputs
        answer = client.infer("notes", tensors(raw)).as_numpy("probabilities")
    assert (told.name, told.datatype, *told.shape) == ("note", "BYTES", -1)
    path = site_file(tmp_path, 'note,y\n"Fever, cough",no\n,no\nNA,no\nfièvre,no\n')
    with torch.no_grad():
        wanted = asked.module.model(asked._task.read(path, "train").features).softmax(-1)
    assert np.allclose(answer, wanted.numpy(), atol=1e-6)
    assert np.array_equal(answer[1], answer[2]) and not np.allclose(answer[0], answer[3])


def test_it_says_what_it_is_and_that_it_is_ready(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("a-run")
    assert not client.is_model_ready("another") and not client.is_model_ready("a-run", "2")
    assert client.get_server_metadata().name == "tacit"
    told = client.get_model_metadata("a-run", "1")
    assert {(i.name, i.datatype, *i.shape) for i in told.inputs} == {
        ("age", "FP64", -1), ("amount of money", "FP64", -1), ("class", "BYTES", -1), ("sex", "BYTES", -1),
    }  # fmt: skip
    assert {(o.name, o.datatype, *o.shape) for o in told.outputs} == {
        ("probabilities", "FP32", -1, 2), ("class_", "BYTES", -1),
    }  # fmt: skip


def test_whole_numbers_and_columns_of_width_1_are_taken_and_outputs_are_chosen(
    client: Any, predictor: Predictor
) -> None:
    raw = people(age=np.array([[61], [40]]))
    answer = client.infer("a-run", tensors(raw), outputs=[triton.InferRequestedOutput("class_")])
    assert answer.as_numpy("probabilities") is None
    wanted = predictor.predict(people(age=np.array([61.0, 40.0])))["class_"].tolist()
    assert [text.decode() for text in answer.as_numpy("class_")] == wanted


def test_typed_contents_mean_the_same_as_raw_ones(server: ModelServer, predictor: Predictor) -> None:
    contents = {
        "age": ("FP64", {"fp64_contents": [61.0, 5.0]}),
        "amount of money": ("FP32", {"fp32_contents": [0.5, 2.0]}),
        "class": ("BYTES", {"bytes_contents": [b"1", b"three"]}),
        "sex": ("BYTES", {"bytes_contents": [b"f", b"m"]}),
    }
    request = service_pb2.ModelInferRequest(model_name="a-run")
    for name, (datatype, content) in contents.items():
        request.inputs.add(name=name, datatype=datatype, shape=[2], contents=content)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=10)
    got = np.frombuffer(answer.raw_output_contents[0], dtype="<f4").reshape(2, 2)
    raw = people(
        age=np.array([61.0, 5.0]),
        **{"amount of money": np.array([0.5, 2.0]), "class": np.array(["1", "three"], dtype=object)},
    )
    assert np.array_equal(got, predictor.numbers(raw))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"age": None}, "missing: 'age'"),
        ({"height": np.zeros(2)}, "the model has no input 'height'"),
        ({"age": np.zeros(3)}, "different numbers of rows"),
        ({"age": np.zeros((2, 2))}, r"'age' takes shape (rows), not (2, 2)"),
        ({"age": np.array(["6", "7"], dtype=object)}, "'age' takes FP64"),
        ({"sex": np.array([1.0, 2.0])}, "'sex' takes BYTES"),
        ({"age": np.array([1.0, np.inf])}, "'age' has an infinite number"),
        ({"sex": np.array(["f", "Q8273"], dtype=object)}, "'sex' is none of its 2 categories"),
        ({name: np.repeat(v, 5) for name, v in people().items()}, "between 1 and 8 rows"),
        ({name: v[:0] for name, v in people().items()}, "between 1 and 8 rows"),
    ],
)
def test_no_value_of_a_record_is_in_an_error_or_in_the_log(
    client: Any, caplog: pytest.LogCaptureFixture, changed: dict[str, Any], words: str
) -> None:
    with (
        caplog.at_level(logging.DEBUG, "tacit"),
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer("a-run", tensors(people(**changed)))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert words in caught.value.message()
    told = caught.value.message() + caplog.text
    assert "Q8273" not in told and "1200" not in told and "61" not in told
    assert "ModelInfer refused: INVALID_ARGUMENT" in caplog.text


def test_what_a_failure_says_of_a_record_stays_here(
    client: Any, predictor: Predictor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(raw: Any) -> Any:
        raise ValueError(f"cannot digest {raw['age'].tolist()}")

    monkeypatch.setattr(predictor, "predict", fail)
    with caplog.at_level(logging.DEBUG, "tacit"), pytest.raises(InferenceServerException) as caught:
        client.infer("a-run", tensors(people()))
    assert (caught.value.status(), caught.value.message()) == ("StatusCode.INTERNAL", "failed")
    assert "ValueError in" in caplog.text and "61" not in re.sub(r":\d+", "", caplog.text)


def test_a_model_a_version_and_a_call_that_are_not_here_are_said_to_be_so(
    client: Any, server: ModelServer
) -> None:
    for name, version in (("other", ""), ("a-run", "2")):
        with pytest.raises(InferenceServerException, match="there is no model") as caught:
            client.infer(name, tensors(people()), model_version=version)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("other")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_message_larger_than_allowed_is_not_read(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("a-run", tensors(people(age=np.zeros(10_000))))
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "words"),
    [
        ("FP64", [2], b"12345678", "8 bytes where its shape asks for 16"),
        ("FP64", [2**40, 2**40], b"", "0 bytes where its shape asks for"),
        ("FP64", [-1], b"", "negative side"),
        ("FP99", [1], b"", "unknown datatype"),
        ("BYTES", [1], b"\xff\xff\xff\xffab", "cut short"),
        ("BYTES", [1], b"\x01\x00", "cut short"),
        ("BYTES", [2**60], b"\x01\x00\x00\x00a", "1 values where its shape asks for"),
        ("BYTES", [1], b"\x01\x00\x00\x00\xff", "is not UTF-8"),
        ("BYTES", [0], b"\x00\x00\x00\x00", "1 values where its shape asks for 0"),
    ],
)
def test_a_tensor_whose_content_does_not_fill_its_shape_is_refused_whatever_the_shape_claims(
    server: ModelServer, datatype: str, shape: list[int], raw: bytes, words: str
) -> None:
    request = service_pb2.ModelInferRequest(model_name="a-run", raw_input_contents=[raw])
    request.inputs.add(name="age", datatype=datatype, shape=shape)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        ask = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        with pytest.raises(grpc.RpcError) as caught:
            ask(request, timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


def test_images_are_served_as_they_stand_in_the_file(tmp_path: Path) -> None:
    tables = arrays_experiment("classification", "cnn", shape=[1, 8, 8], classes=["a", "b"], center=[3.0])
    images = Predictor(Trained.open(run_folder(tmp_path, tables)))
    x = np.random.default_rng(1).normal(3, 1, (2, 1, 8, 8)).astype(np.float32)
    server = ModelServer(images, host="127.0.0.1", port=0, tls=None, **LIMITS)
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            answer = client.infer("arrays", tensors({"x": x}))
    finally:
        server.close()
    assert np.array_equal(answer.as_numpy("probabilities"), images.numbers({"x": x}))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def asks_over_tls(server: ModelServer, **files: str) -> bool:
    address = f"localhost:{server.port}"
    with triton.InferenceServerClient(address, ssl=True, **files) as client:
        try:
            return bool(client.is_server_live(client_timeout=5))
        except InferenceServerException:
            return False


def test_over_tls_the_client_checks_the_server_and_the_server_may_check_the_client(
    predictor: Predictor, authority: Authority, tmp_path: Path
) -> None:
    ours, theirs = authority.issue("server"), authority.issue("asker")
    (tmp_path / "strange").mkdir()
    stranger = Authority(tmp_path / "strange").issue("stranger")
    ca = str(authority.pem)
    tls = Tls(ours.certificate, ours.key, authority.pem)
    server = ModelServer(predictor, host="127.0.0.1", port=0, tls=tls, **LIMITS)
    try:
        assert asks_over_tls(
            server,
            root_certificates=ca,
            private_key=str(theirs.key),
            certificate_chain=str(theirs.certificate),
        )
        assert not asks_over_tls(server, root_certificates=ca)
        assert not asks_over_tls(
            server,
            root_certificates=ca,
            private_key=str(stranger.key),
            certificate_chain=str(stranger.certificate),
        )
        with (
            triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
            pytest.raises(InferenceServerException),
        ):
            client.is_server_live(client_timeout=2)
    finally:
        server.close()


def test_without_tls_nothing_listens_on_an_address_that_others_can_reach(predictor: Predictor) -> None:
    for host in ("0.0.0.0", "::", "example.org", "192.0.2.1", ""):
        with pytest.raises(ConfigError, match="--host"):
            ModelServer(predictor, host=host, port=0, tls=None, **LIMITS)


def test_files_that_cannot_be_used_for_tls_are_one_line(authority: Authority) -> None:
    pair, other = authority.issue("server"), authority.issue("other")
    for tls in (
        Tls(pair.certificate, other.key),
        Tls(pair.certificate.with_name("absent"), pair.key),
        Tls(pair.certificate, pair.key, pair.key),
    ):
        with pytest.raises(StorageError, match="cannot be used for TLS") as caught:
            tls.credentials()
        assert "\n" not in str(caught.value)
    pair.key.chmod(0o644)
    with pytest.raises(StorageError, match=r"server\.key"):
        Tls(pair.certificate, pair.key).credentials()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --cert and --key, or --insecure-loopback"),
        (["--insecure-loopback", "--cert", "x"], "give --cert and --key, or --insecure-loopback"),
        (["--cert", "x"], "TLS needs both"),
        (["--insecure-loopback", "--host", "0.0.0.0"], "can be reached by others"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(run_folder(tmp_path)), *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_an_orchestrator_asks_for_its_health_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "tacit"), "serve", str(run_folder(tmp_path))]
    with subprocess.Popen(
        [*command, "--insecure-loopback", "--port", "0"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "listening on" in line:
                break
        found = re.search(r"127\.0\.0\.1:(\d+)", "".join(lines))
        assert found is not None, lines
        with grpc.insecure_channel(f"127.0.0.1:{found[1]}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            for name in ("", "inference.GRPCInferenceService"):
                assert check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == 1
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 0
    assert "Traceback" not in rest and "ended" in rest
