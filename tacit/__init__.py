"""Tacit: federated training in which the server learns a differentially private sum and nothing else."""

import os

__version__ = "0.1.0"

# Nothing is reported to anybody, and that is not optional. It is said here, before anything of these is imported.
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, from 1.29 on
}
