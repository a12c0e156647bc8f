"""`tacit export` and `tacit serve`: what becomes of a run's model."""

from __future__ import annotations

import logging
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tacit.errors import ConfigError

if TYPE_CHECKING:
    from tacit.inference.predictor import Predictor

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
LOG = logging.getLogger(__name__)

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a finished run: runs/NAME, or KIT/state/runs/ID.")
]
DataFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Records with labels, as a site has them: for --int8, and for a task of your own.",
    ),
]


def export(
    run: RunFolder,
    form: Annotated[str, typer.Option("--format", help="onnx, or torch for torch.export.")] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What to write.", show_default="RUN/model.onnx or .pt2"),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Weights of 8 bits; ONNX only, and only if --data say it is good enough."
        ),
    ] = False,
    data: DataFile = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="With --int8: the most that may be lost, of accuracy or of an error."
        ),
    ] = 0.01,
) -> None:
    """Write a run's model as one file for other runtimes, with its preprocessing inside.

    The file takes raw records: numbers as they stand in the table, categories as
    texts, NaN and "" for an empty cell. docs/after-training.md has the details.

    \b
    tacit export runs/my
    tacit export runs/my --int8 --data holdout.csv
    tacit export runs/my --format torch --out my.pt2
    """
    if form not in SUFFIXES:
        raise ConfigError(f"must be {' or '.join(SUFFIXES)}, not {form!r}", key="--format")
    if int8 and form != "onnx":
        raise ConfigError("is for --format onnx: PyTorch's archive keeps 32 bits", key="--int8")
    if int8 and data is None:
        raise ConfigError(
            "needs --data FILE: what 8 bits cost is measured on records with labels", key="--int8"
        )
    from tacit.inference.predictor import shown

    path = out or run / ("model.int8.onnx" if int8 else f"model{SUFFIXES[form]}")
    predictor = predictor_of(run, data)
    if int8:
        _export_int8(predictor, path, data, tolerance)
    else:
        from tacit.inference.export import ROWS, export_onnx, export_torch

        apart = (export_onnx if form == "onnx" else export_torch)(predictor, path)
        typer.echo(
            f"model: {path}, {_size(path.stat().st_size)}; differs from the run's by at most {apart:.1e} on {ROWS} "
            "made-up records"
        )
    typer.echo(f"inputs: {shown([each.of_a_file() for each in predictor.inputs])}")
    outputs = predictor.outputs if form == "onnx" else predictor.outputs[:1]
    typer.echo(f"outputs: {shown(outputs)}")


def _export_int8(predictor: Predictor, path: Path, data: Path | None, tolerance: float) -> None:
    from tacit.inference.int8 import export_int8

    assert data is not None
    found = export_int8(predictor, path, data, tolerance)
    typer.echo(
        f"model: {path}, {_size(found.bytes_int8)} instead of {_size(found.bytes_exact)}; on {found.rows} records "
        f"{found.metric} {found.int8:.4f} instead of {found.exact:.4f}"
    )
    same = f"{100 * found.same:.2f} % get the same class; " if found.metric == "accuracy" else ""
    typer.echo(f"{same}an output differs by at most {found.apart:.2g}")


def serve(
    run: RunFolder,
    cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Certificate of this server.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its key, readable by you alone.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Only who has a certificate of this authority may ask."),
    ] = None,
    insecure_loopback: Annotated[
        bool, typer.Option("--insecure-loopback", help="Without TLS, for this machine alone.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one.")] = 8001,
    max_rows: Annotated[int, typer.Option(min=1, help="Records of one request.")] = 1024,
    max_bytes: Annotated[int, typer.Option(min=1024, max=2**31 - 1, help="Of one message.")] = 4 * 1024**2,
    data: DataFile = None,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="One JSON object to a line of the log.")
    ] = False,
) -> None:
    """Answer requests for predictions: a run's model over gRPC, by the Open Inference Protocol v2.

    A request has one tensor for each column of the table, raw, as docs/after-training.md
    shows. Ctrl-C ends it. Log lines say what was asked and how long it took, never with what.

    \b
    tacit serve runs/my --insecure-loopback
    tacit serve runs/my --host 0.0.0.0 --cert server.pem --key server.key
    """
    from tacit import logs
    from tacit.inference.serving import ModelServer, Tls
    from tacit.processes import interrupted_once

    if insecure_loopback == (cert is not None or key is not None or client_ca is not None):
        raise ConfigError("give --cert and --key, or --insecure-loopback to do without TLS on this machine")
    if not insecure_loopback and (cert is None or key is None):
        raise ConfigError("TLS needs both --cert and --key")
    tls = Tls(cert, key, client_ca) if cert is not None and key is not None else None
    logs.configure("json" if log_json else "text")
    with suppress(KeyboardInterrupt), interrupted_once():  # that is how it ends
        predictor = predictor_of(run, data)
        limits = {"max_rows": max_rows, "max_bytes": max_bytes}
        with closing(ModelServer(predictor, host=host, port=port, tls=tls, **limits)) as server:
            how = "in the clear" if tls is None else "over TLS"
            LOG.info("model %s: listening on %s:%d, %s", predictor.name, host, server.port, how)
            server.wait()
    LOG.info("ended")


def predictor_of(run: Path, data: Path | None) -> Predictor:
    """The model of a run, with torch on one thread; a task of the user's own may lie in the folder they stand in."""
    import torch

    from tacit.inference.predictor import Predictor
    from tacit.inference.trained import Trained

    torch.set_num_threads(1)
    sys.path.append(str(Path.cwd()))
    return Predictor(Trained.open(run), data)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1000:.1f} kB" if num_bytes < 1_000_000 else f"{num_bytes / 1e6:.1f} MB"
