"""Asks grpc.health.v1 on loopback: `python probe.py PORT [SERVICE]`, exit code 0 or 1.

Without SERVICE any answer is good: the process lives, and one that waits for its network must not be started anew.
With SERVICE ("client", "server") it has to work: the site is connected, sites can be served.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 5.0


def works(port: int, service: str) -> bool:
    """Whether the process answers, and of its service, if one is named, that it is serving."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        except grpc.RpcError:  # gone, or it has no such service
            return False
        return not service or answer.status == health_pb2.HealthCheckResponse.SERVING


if __name__ == "__main__":
    sys.exit(0 if works(int(sys.argv[1]), *(sys.argv[2:] or [""])) else 1)
