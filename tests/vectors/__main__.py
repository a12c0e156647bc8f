"""Writes the golden vectors anew: python -m tests.vectors. A changed byte is a new version of the protocol."""

from __future__ import annotations

from tests.vectors.produce import FOLDER, files, written

for name, given in files().items():
    (FOLDER / name).write_text(written(given), encoding="utf-8")
    print(name, len(given), "cases")
