"""The weights of an ONNX file as integers of 8 bits, and what that costs on data of the user's own.

Dynamic quantisation: weights are stored as integers, activations are quantised as they come (ONNX Runtime,
`quantize_dynamic`). Which models bear it is not known beforehand, so none is written without having been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tacit.errors import RunFailed
from tacit.inference.export import export_onnx, quiet, run_onnx, whole
from tacit.inference.predictor import Predictor, largest_difference
from tacit.metric_names import lower_is_better


@dataclass(frozen=True)
class Comparison:
    """The float model beside the one with integers, on one file.

    Attributes:
        rows: records of the file that were asked for.
        metric: "accuracy", where more is better; "rmse" or "loss", where less is.
        exact: of the float model.
        int8: of the other.
        same: share of records with the same class; 1 where numbers are predicted.
        apart: largest difference of an output.
        bytes_exact: size of the float file.
        bytes_int8: of the other.
    """

    rows: int
    metric: str
    exact: float
    int8: float
    same: float
    apart: float
    bytes_exact: int
    bytes_int8: int

    @property
    def lost(self) -> float:
        """How much worse the integers are: of accuracy or NDCG the difference, of an error the share of it."""
        if not lower_is_better(self.metric):
            return self.exact - self.int8
        return self.int8 / self.exact - 1 if self.exact > 0 else float(self.int8 > 0)


def export_int8(predictor: Predictor, path: Path, data: Path, tolerance: float) -> Comparison:
    """Writes an ONNX file with weights of 8 bits, if it is good enough on `data`.

    Args:
        predictor: the model.
        path: of the file.
        data: records with labels, as a site has them; its test split where it has one.
        tolerance: the most that may be lost, see `Comparison.lost`.

    Raises:
        RunFailed: more is lost; nothing is written.
        MissingExtra, ConfigError: see `export_onnx`.
        DataError: the data cannot be used.
    """
    raw, targets = predictor.reader.read(data)
    with whole(path) as unfinished, TemporaryDirectory(prefix="tacit-int8-") as folder:
        floats = Path(folder) / "model.onnx"
        export_onnx(predictor, floats)
        _quantise(floats, unfinished)
        exact, int8 = run_onnx(floats, predictor, raw), run_onnx(unfinished, predictor, raw)
        metric, of_exact = predictor.score(exact, targets)
        same = float((exact.argmax(-1) == int8.argmax(-1)).mean()) if predictor.classes else 1.0
        found = Comparison(
            rows=len(targets),
            metric=metric,
            exact=of_exact,
            int8=predictor.score(int8, targets)[1],
            same=same,
            apart=largest_difference(exact, int8),
            bytes_exact=floats.stat().st_size,
            bytes_int8=unfinished.stat().st_size,
        )
        if not found.lost <= tolerance:  # false for NaN too
            raise RunFailed(
                f"8 bits lose {found.lost:.3f} of {metric} ({of_exact:.3f} becomes {found.int8:.3f}) on {found.rows} "
                f"records, more than --tolerance {tolerance:g}: nothing was written"
            )
    return found


def _quantise(floats: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():  # it warns of a preparation that is about activations known beforehand
        quantize_dynamic(str(floats), str(path), weight_type=QuantType.QInt8)
