"""Where a client is killed, as `killing/sitecustomize.py` says it for the server.

Ledger and journal are written by the functions that are named here, and by no other.
"""

from pathlib import Path


def in_ledger(file: object, descriptor: int, data: bytes) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name == "ledger.jsonl"


# In the order in which a round comes to them; with the first two, this client may be missing in the sum.
CLIENT_POINTS = {
    "message-taken": ("client.inbox", "Inbox.save", "before", None),
    "attempt-journalled": ("tacit.secagg.journal", "Journal.answered", "after", None),
    "keys-made": ("client.submission", "setup", "after", None),
    "peers-journalled": ("tacit.secagg.journal", "Journal.see_peers", "after", None),
    "shares-dealt": ("client.submission", "deal", "after", None),
    "debit-torn": ("tacit.privacy.chain_file", "ChainFile._write", "within", in_ledger),
    "debited": ("tacit.privacy.ledger", "Ledger.debit", "after", None),
    "mask-journalled": ("tacit.secagg.journal", "Journal.masked", "after", None),
    "vector-made": ("client.submission", "mask", "after", None),
    "survivors-signed": ("tacit.secagg.journal", "Journal.sign", "after", None),
    "set-confirmed": ("client.submission", "confirm", "after", None),
    "shares-opened": ("client.submission", "unmask", "after", None),
    "answer-sent": ("spool", "SpoolWire.answer", "after", None),
}
PAID = ("debit-torn", "debited")  # points that only a run with privacy comes to in each round
