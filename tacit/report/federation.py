"""What a privacy statement says of a federation: who stands for the members' keys, what they have agreed on, what a
site can file."""

from __future__ import annotations

from tacit.report.record import Federation, RunRecord


def root_of_trust(federation: Federation) -> str:
    """Who has to be right about which keys are whose, for a sum to be a sum of the members'."""
    if federation.root_key:
        holder = federation.root_holder or "somebody whom federation.toml does not name"
        return (
            f"{holder}, who holds the offline root key {federation.root_key} and has signed the roster of "
            "members in place of the sites. The coordinator has no part in it"
        )
    if federation.epoch == 1:
        who = f"all {federation.members} members have signed it"
    else:
        who = (
            f"its first epoch was signed by all members then, each later one by more than (N + c) / 2 of the "
            f"N members of the epoch before; under this one stand {federation.signatures} signatures"
        )
    return (
        f"nobody else: the roster of members is theirs ({who}), as far as their operators compared its digest. "
        "The coordinator signs no roster"
    )


def agreed(federation: Federation) -> tuple[tuple[str, str], ...]:
    """The rules in the roster that each site enforces by itself."""
    smallest = federation.min_clients
    return (
        ("Federation", federation.name),
        ("Roster", f"epoch {federation.epoch}, {federation.members} members, digest {federation.digest}"),
        (
            "n_min",
            f"{smallest}: no sum is begun with fewer clients, and with at most {federation.max_clients}",
        ),
        (
            "c",
            f"{federation.max_corrupt}: so many members of the whole roster may collude with the coordinator, and "
            "what others send stays hidden in their sum",
        ),
        ("D", f"{federation.max_dropouts}: so many clients may vanish from a sum of n_min"),
    )


def site_file(record: RunRecord) -> tuple[str, ...]:
    """What a site can check and keep of a run, and what of this statement is the coordinator's word."""
    ledger = (
        f"What this run has spent at a site is in that site's ledger (tacit client ledger KIT, run {record.run_id}): "
        "it is on the disk before anything leaves, counts attempts that came to nothing, and goes on counting over "
        "all runs on the same data. It is the figure to file beside this statement; the coordinator does not know "
        "it."
    )
    checked = (
        "This statement is made from the coordinator's record of the run. A site need not believe it: epsilon, delta, "
        "clip norm and noise follow from the experiment that each site has checked against its own policy and the "
        "roster, and tacit audit verify KIT compares what site and coordinator have written down."
    )
    return (ledger, checked) if record.is_private else (checked,)
