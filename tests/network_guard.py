"""Nothing in a test leaves this machine: every connection and every name looked up is seen before it happens.

Python raises an audit event at each, in C, so no library that uses Python's sockets gets past it. (Libraries with
sockets of their own, such as gRPC, do; the tests of processes watch those through a proxy.)
"""

import ipaddress
import socket
import sys
from collections.abc import Callable

CONNECTS = ("socket.connect", "socket.sendto", "socket.sendmsg")
RESOLVES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def outside(event: str, arguments: tuple[object, ...]) -> str | None:
    """Who is asked for by an audit event, when that is not this machine."""
    if event in CONNECTS:
        address = arguments[1]
        # A path is a socket in the file system; None, a message on a socket that is connected.
        host = address[0] if isinstance(address, tuple) else None
    elif event in RESOLVES:
        host = arguments[0]
    else:
        return None
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    return None if is_here(name) else name


def is_here(name: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if name in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def watch(report: Callable[[str], None]) -> None:
    """Reports and forbids from now on, in this process; there is no way back.

    Raises:
        PermissionError: in whatever wanted to go outside.
    """

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith("socket.") and (host := outside(event, arguments)):
            report(f"{event} {host}")
            raise PermissionError(f"a test must not ask for {host}")

    sys.addaudithook(hook)
