"""The six calls of the Open Inference Protocol v2 about one model. No sockets here.

Guarantees:
    No value of a record, and nothing computed from one, is in an error or in the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit import __version__
from tacit.errors import ProtocolError, TacitError
from tacit.inference import protocol
from tacit.inference.inputs import Input
from tacit.inference.predictor import Output, Predictor
from tacit.logs import told, visible

if TYPE_CHECKING:
    import grpc

SERVICE: Final = "inference.GRPCInferenceService"
VERSION: Final = "1"
_MOST_NAMED: Final = 80  # characters of a name that somebody else chose
LOG: Final = logging.getLogger(__name__)


class NotFound(TacitError):
    """There is no such model or version here."""


class Answers:
    """Answers about one model.

    Args:
        predictor: the model.
        max_rows: records of one request.
    """

    def __init__(self, predictor: Predictor, max_rows: int) -> None:
        self._predictor, self._max_rows = predictor, max_rows
        self._types = {each.name: each for each in predictor.inputs}

    def server_live(self, request: Any, pb: Any) -> Any:
        """Whether the process works."""
        return pb.ServerLiveResponse(live=True)

    def server_ready(self, request: Any, pb: Any) -> Any:
        """Whether it can predict: the model is loaded before the port is open."""
        return pb.ServerReadyResponse(ready=True)

    def model_ready(self, request: Any, pb: Any) -> Any:
        """Whether this model is here."""
        return pb.ModelReadyResponse(ready=self._is_here(request.name, request.version))

    def server_metadata(self, request: Any, pb: Any) -> Any:
        """Who answers."""
        return pb.ServerMetadataResponse(name="tacit", version=__version__)

    def model_metadata(self, request: Any, pb: Any) -> Any:
        """Inputs and outputs of the model."""
        self._check_name(request.name, request.version)
        predictor = self._predictor
        return pb.ModelMetadataResponse(
            name=predictor.name,
            versions=[VERSION],
            platform="pytorch",
            inputs=_described(predictor.inputs, pb),
            outputs=_described(predictor.outputs, pb),
        )

    def model_infer(self, request: Any, pb: Any) -> Any:
        """Predictions for some raw records."""
        self._check_name(request.model_name, request.model_version)
        raw = self._records(request)
        wanted = [each.name for each in request.outputs] or [each.name for each in self._predictor.outputs]
        known = {each.name: each for each in self._predictor.outputs}
        for name in wanted:
            if name not in known:
                raise ProtocolError("output", f"the model has no output {_shortened(name)}")
        found = self._predictor.predict(raw)
        outputs = [
            pb.ModelInferResponse.InferOutputTensor(
                name=name, datatype=known[name].datatype, shape=found[name].shape
            )
            for name in wanted
        ]
        return pb.ModelInferResponse(
            model_name=self._predictor.name,
            model_version=VERSION,
            id=request.id,
            outputs=outputs,
            raw_output_contents=[protocol.encoded(found[name], known[name].datatype) for name in wanted],
        )

    def _records(self, request: Any) -> dict[str, NDArray[Any]]:
        """The inputs by name, each checked, all with equally many rows."""
        raws: Sequence[bytes | None] = request.raw_input_contents or [None] * len(request.inputs)
        if len(raws) != len(request.inputs):
            raise ProtocolError(
                "input",
                f"{len(request.inputs)} inputs have {len(raws)} raw contents: all have one, or none has",
            )
        found: dict[str, NDArray[Any]] = {}
        for tensor, raw in zip(request.inputs, raws, strict=True):
            if tensor.name not in self._types:
                raise ProtocolError("input", f"the model has no input {_shortened(tensor.name)}")
            if tensor.name in found:
                raise ProtocolError("input", f"{tensor.name!r} is there twice")
            found[tensor.name] = self._checked(self._types[tensor.name], protocol.decoded(tensor, raw))
        missing = [name for name in self._types if name not in found]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ProtocolError("input", f"missing: {', '.join(map(repr, missing[:5]))}{more}")
        rows = {len(values) for values in found.values()}
        if len(rows) != 1:
            raise ProtocolError("input", "the inputs have different numbers of rows")
        if not 0 < rows.pop() <= self._max_rows:
            raise ProtocolError("input", f"a request has between 1 and {self._max_rows} rows")
        return found

    def _checked(self, wanted: Input, values: NDArray[Any]) -> NDArray[Any]:
        is_text = values.dtype == object
        if is_text != (wanted.datatype == "BYTES"):
            raise ProtocolError("input", f"{wanted.name!r} takes {wanted.datatype}")
        if not wanted.shape and values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]  # a column as some clients send it
        if values.ndim < 1 or values.shape[1:] != wanted.shape:
            shape = ", ".join(["rows", *map(str, wanted.shape)])
            raise ProtocolError("input", f"{wanted.name!r} takes shape ({shape}), not {values.shape}")
        return values if is_text else values.astype(np.float64 if wanted.datatype == "FP64" else np.float32)

    def _is_here(self, name: str, version: str) -> bool:
        return name == self._predictor.name and version in ("", VERSION)

    def _check_name(self, name: str, version: str) -> None:
        if not self._is_here(name, version):
            raise NotFound(
                f"there is no model {_shortened(name)} of version {_shortened(version or VERSION)}"
            )


def handlers(answers: Answers) -> grpc.GenericRpcHandler:
    """What a gRPC server is given. Calls that are not in the protocol are unimplemented.

    Raises:
        ImportError: tritonclient, whose messages these are, is not installed.
    """
    import grpc
    from tritonclient.grpc import service_pb2 as pb

    calls = {
        "ServerLive": answers.server_live,
        "ServerReady": answers.server_ready,
        "ModelReady": answers.model_ready,
        "ServerMetadata": answers.server_metadata,
        "ModelMetadata": answers.model_metadata,
        "ModelInfer": answers.model_infer,
    }
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(name, call, pb),
                request_deserializer=getattr(pb, f"{name}Request").FromString,
                response_serializer=getattr(pb, f"{name}Response").SerializeToString,
            )
            for name, call in calls.items()
        },
    )


def _answering(name: str, call: Callable[[Any, Any], Any], pb: Any) -> Callable[[Any, Any], Any]:
    """Turns an error into a status, and writes a line of the log that has no payload."""
    import grpc

    def answer(request: Any, context: Any) -> Any:
        started = time.perf_counter()
        try:
            response = call(request, pb)
        except NotFound as error:
            code, text = grpc.StatusCode.NOT_FOUND, str(error)
        except ProtocolError as error:
            code, text = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Exception as error:  # the edge: gRPC would send the text of what is not caught to the client
            LOG.error("%s failed: %s", name, told(error))
            code, text = grpc.StatusCode.INTERNAL, "failed"
        else:
            if name in ("ModelInfer", "ModelMetadata"):
                LOG.info("%s ok, %.1f ms", name, 1000 * (time.perf_counter() - started))
            return response
        LOG.info("%s refused: %s", name, code.name)
        context.abort(code, text)
        raise AssertionError  # abort does not return

    return answer


def _described(names: Sequence[Input | Output], pb: Any) -> list[Any]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(name=e.name, datatype=e.datatype, shape=[-1, *e.shape])
        for e in names
    ]


def _shortened(name: str) -> str:
    return repr(visible(name[:_MOST_NAMED]))
