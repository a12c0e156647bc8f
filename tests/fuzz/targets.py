"""What is fuzzed: name -> target. The names are those of the catalogue of tests."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from tests.fuzz.bars import Target

# By name, so that a process that fuzzes one of them loads, and instruments, no more than that one needs.
TARGETS: Final = {
    "H1": "messages:envelope",
    "H2": "messages:share_plaintext",
    "H3": "messages:packed_vector",
    "H4": "files:roster_file",
    "H5": "files:configuration",
    "H6": "storage:stored",
    "H7": "files:table",
    "H8": "machines:client_machine",
    "H8-server": "machines:server_machine",
    "H9": "wire:record_dict",
    "H9-bridge": "wire:bridged_record_dict",
    "H10": "roundtrips:round_trip",
}


def target(name: str) -> Target:
    """The function of a target."""
    module, _, function = TARGETS[name].partition(":")
    found: Target = getattr(import_module(f"tests.fuzz.{module}"), function)
    return found
