"""The front's certificate: read again when its files change, so that it is renewed without a restart."""

from __future__ import annotations

import ssl
from pathlib import Path

from tacit.errors import StorageError
from tacit.secagg.identity import read_private


class Certificate:
    """A certificate and its key, PEM.

    Guarantees:
        A new pair counts for the next connection; while only half of it is there, the old one does.
        A key that other users can read is refused.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Reads both.

        Raises:
            StorageError: a file cannot be read, is no certificate or no key of it, or the key is open to others.
        """
        self._files = (certificate, key)
        self._stamp: tuple[object, ...] = ()
        try:
            self._stamp = self._now()
            self._context = self._load()
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(f"{certificate}, {key}: cannot be used for TLS: {reason}") from None

    def context(self) -> ssl.SSLContext:
        """What the next connection is to be answered with."""
        try:
            stamp = self._now()
            if stamp != self._stamp:
                self._context = self._load()
                self._stamp = stamp
        except (OSError, StorageError):  # just being replaced, or not usable: next time, perhaps
            pass
        return self._context

    def _now(self) -> tuple[object, ...]:
        return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in (file.stat() for file in self._files))

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._files
        read_private(key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.load_cert_chain(certificate, key, password="")  # never ask on a terminal
        return context
