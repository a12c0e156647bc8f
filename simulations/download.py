"""Downloads a public data file once, into the user's cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import Progress

from tacit.errors import DataError

TIMEOUT_SECONDS = 30.0
MAX_BYTES = 64 * 1024**2
CHUNK = 64 * 1024


def cache_folder(name: str) -> Path:
    """Where downloads of one source rest: under XDG_CACHE_HOME, else ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tacit" / name


def download(url: str, target: Path, check: Callable[[bytes], str]) -> None:
    """Fetches `url` into `target`, with a progress bar; the file appears whole and checked, or not at all.

    Args:
        url: http or https.
        target: the file to write; its folder is made.
        check: what is wrong with the content, or "".

    Raises:
        DataError: no connection, a refusal, or content that `check` rejects; says where the file would go.
    """
    try:
        content = _fetch(url, target.name)
        problem = check(content)
        if not problem:
            _write(target, content)
    except (URLError, HTTPException, OSError) as error:
        problem = str(getattr(error, "reason", None) or error) or type(error).__name__
    if problem:
        message = f"cannot be had from {url} ({problem}); put it there by hand, or set data.dir to its folder"
        raise DataError(message, path=target)


def _fetch(url: str, label: str) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"not a web address: {url!r}")
    request = Request(url, headers={"User-Agent": "tacit"})  # noqa: S310 - the scheme is checked above
    bar = Progress(console=Console(stderr=True), transient=True)
    with urlopen(request, timeout=TIMEOUT_SECONDS) as reply, bar as progress:  # noqa: S310
        announced = int(reply.headers.get("Content-Length") or 0)
        task = progress.add_task(label, total=announced or None)
        content = bytearray()
        while chunk := reply.read(CHUNK):
            content += chunk
            if len(content) > MAX_BYTES:
                raise OSError(f"more than {MAX_BYTES} bytes")
            progress.update(task, advance=len(chunk))
    if announced and len(content) != announced:
        raise OSError(f"{len(content)} of {announced} bytes arrived")
    return bytes(content)


def _write(target: Path, content: bytes) -> None:
    """Through a second name, so that a half-written file is never taken for the data."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(target)
