"""How a site agrees to a roster: it fetches the newest epoch, the operator compares and approves it, the site signs.

Rosters come over the coordinator's TLS front by an `httpx.Client`, and are believed only as
`tacit.secagg.signed_roster` says. Nothing here speaks to Flower.

Guarantees:
    A roster is signed only after the operator has approved its digest, and never two later ones with one number.
    A roster that names this site or the coordinator otherwise than its kit does is not signed.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.enrolment import SiteKit
from tacit.errors import ProtocolError, Refused, RunFailed, StorageError
from tacit.privacy.chain_file import ChainFile
from tacit.roster_text import describe
from tacit.secagg.identity import Identity, readable
from tacit.secagg.membership import HEADER, member_header
from tacit.secagg.roster import Roster
from tacit.secagg.signed_roster import RosterFile, SignedRoster, checked_signers

if TYPE_CHECKING:
    import httpx

ROSTER_PATH: Final = "/tacit/roster"
POLL_SECONDS: Final = 5.0

_MAX_ROSTER: Final = 64 << 20
_UNAVAILABLE: Final = 503


class Away(RunFailed):
    """Nobody answers for the coordinator now."""


def https_client(kit: SiteKit, timeout: float = 30.0) -> httpx.Client:
    """A client for the coordinator's front: it trusts this kit's CA and no other, and follows no redirect.

    Raises:
        StorageError: ca.pem cannot be used.
    """
    import httpx

    path = kit.folder / "ca.pem"
    try:
        context = ssl.create_default_context(cafile=str(path))
    except OSError as error:  # ssl.SSLError is one
        raise StorageError(f"{path}: not a certificate: {error.strerror or error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return httpx.Client(base_url=f"https://{kit.invitation.address}", verify=context, timeout=timeout)


def fetch_roster(
    kit: SiteKit, client: httpx.Client, identity: Identity, epoch: int | None = None
) -> SignedRoster:
    """The newest epoch, or one before it, with whatever signatures the coordinator has. Not to be believed yet.

    Args:
        kit: this site's.
        client: made by `https_client`.
        identity: this site's, which shows that it may ask.
        epoch: which epoch; None = the newest.

    Raises:
        RunFailed: it cannot be had, and why.
        ProtocolError: what came is no roster file.
    """
    headers = _headers(kit, identity, epoch or 0)
    signed = SignedRoster.decode(_exchange(kit, client, "GET", headers, b""))
    if epoch is not None and signed.roster.epoch != epoch:
        raise RunFailed(f"{kit.invitation.address}: does not keep epoch {epoch} of the roster")
    return signed


def post_signature(kit: SiteKit, client: httpx.Client, identity: Identity, signed: SignedRoster) -> None:
    """Sends this site's signature under a roster.

    Raises:
        RunFailed: the coordinator does not take it, and why.
    """
    index = signed.roster.index_of(identity.public)
    own = SignedRoster(signed.roster, {index: signed.signatures[index]})
    _exchange(kit, client, "POST", _headers(kit, identity), own.encode())


def check_own(kit: SiteKit, roster: Roster, identity: Identity) -> None:
    """Whether a roster says of this site and of the coordinator what the kit says.

    Raises:
        ProtocolError: "unknown-member", "roster-label", "roster-rows" or "server-key".
    """
    entry = roster.enrolled[roster.index_of(identity.public)]
    invitation, request, accepted = kit.invitation, kit.request(), kit.accepted()
    before = accepted.enrolled if accepted else ()
    declared = {each.num_rows for each in before if each.member.key == identity.public}
    declared |= {request.num_rows} if request else set()
    if entry.member.label != invitation.label:
        raise ProtocolError("roster-label", f"this site's key stands under {entry.member.label!r}")
    if entry.num_rows not in declared:
        raise ProtocolError("roster-rows", f"{entry.num_rows} rows, which this site has not declared")
    if roster.server_key != invitation.key:
        raise ProtocolError("server-key", "the coordinator's key is not the one in federation.toml")


def sign(kit: SiteKit, signed: SignedRoster, identity: Identity) -> SignedRoster:
    """The same with this site's signature. What is signed is remembered first, on the disk.

    The first epoch counts only when all have signed it, so a site may sign another first one while it has accepted
    none; of every later number it signs one only.

    Raises:
        ProtocolError: as `check_own`; "roster-epoch", it has signed another epoch with this number, or has accepted
            one.
        StorageError: it cannot be remembered.
    """
    roster = signed.roster
    check_own(kit, roster, identity)
    accepted, digest = kit.accepted(), roster.digest().hex()
    if accepted and roster.epoch <= accepted.epoch and roster != accepted:
        raise ProtocolError("roster-epoch", f"epoch {accepted.epoch} is accepted already")
    file, records = ChainFile.open(kit.folder / "signed.jsonl")
    with file:
        before = {record["digest"] for record in records if record["epoch"] == roster.epoch}
        if before - {digest} and roster.epoch > 1:
            raise ProtocolError("roster-epoch", f"this site has signed another epoch {roster.epoch}")
        if digest not in before:
            file.append({"epoch": roster.epoch, "digest": digest})
    return signed.sign(identity)


def accept(kit: SiteKit, signed: SignedRoster, identity: Identity, compared: bytes = b"") -> bool:
    """Takes an epoch if it counts.

    Args:
        kit: this site's.
        signed: the epoch.
        identity: this site's.
        compared: its digest if people have compared it; else empty.

    Returns:
        Whether it counts; False where signatures are missing.

    Raises:
        ProtocolError: it can never count: as `RosterFile.accept` and `check_own`, or a signature is wrong.
        StorageError: it cannot be written.
    """
    roster, before = signed.roster, kit.accepted()
    if before == roster:
        return True
    checked_signers(signed, before.root_key if before else roster.root_key)
    own_key = _own_key(kit, roster, before, identity)
    with RosterFile.open(kit.folder / "roster.jsonl") as file:
        try:
            file.accept(signed, own_key, compared=compared)
        except ProtocolError as error:
            if error.reason == "roster-signature" or (before is None and error.reason == "roster-epoch"):
                return False  # none of those that are there is wrong: some are missing, or the comparison
            raise
    return True


def approve(
    folder: Path,
    *,
    client: httpx.Client | None = None,
    digest: str = "",
    ask: Callable[[str], str] = input,
    say: Callable[[str], None] = print,
    wait: bool = True,
    poll_seconds: float = POLL_SECONDS,
) -> Roster | None:
    """Shows the newest roster, has the operator approve it, signs it, and waits until all others have.

    Args:
        folder: the kit.
        client: for the coordinator's front; None = made here.
        digest: what the operator has compared before, as it is printed; empty = asked for.
        ask: puts a question to the operator.
        say: takes lines for the operator.
        wait: wait until the roster counts; else come back after signing.
        poll_seconds: between two looks.

    Returns:
        The epoch that counts now; None where it does not yet, and `wait` is false.

    Raises:
        Refused: "roster", the operator does not approve.
        ProtocolError: the roster cannot be signed or accepted.
        RunFailed: the coordinator has no roster for this site, is another one, or is away and `wait` is false.
        StorageError: a file of the kit cannot be used.
    """
    kit = SiteKit.open(folder)
    identity, approved, said = kit.identity(), b"", ""
    with ExitStack() as stack:
        connection = client or stack.enter_context(https_client(kit))
        while True:
            try:
                signed = _pending(kit, connection, identity)
                if kit.accepted() == signed.roster:
                    return signed.roster
                if kit.accepted() and accept(kit, signed, identity):
                    say(f"epoch {signed.roster.epoch} is accepted: enough others have signed it")
                    continue
                if signed.roster.digest() != approved:
                    _ask(kit, signed, identity, digest, ask, say)
                    approved = signed.roster.digest()
                if _is_asked(kit, signed, identity):
                    signed = sign(kit, signed, identity)
                    post_signature(kit, connection, identity, signed)
                if accept(kit, signed, identity, approved):
                    say(f"epoch {signed.roster.epoch} is accepted")
                    continue
                say(f"epoch {signed.roster.epoch}: {_absent(signed)}")
            except RunFailed as error:
                if not (wait and (approved or isinstance(error, Away))):
                    raise
                if str(error) != said:
                    say(f"{error}; waiting")
                said = str(error)
            if not wait:
                return None
            time.sleep(poll_seconds)


def follow(kit: SiteKit, client: httpx.Client, identity: Identity) -> tuple[Roster | None, str]:
    """What a running agent does now and then: takes the next epoch if it counts, and signs nothing.

    Args:
        kit: this site's, which has accepted an epoch.
        client: for the coordinator's front.
        identity: this site's.

    Returns:
        An epoch that was accepted just now, or None; and a line for the log, or "".

    Raises:
        RunFailed: the coordinator cannot be reached.
        ProtocolError: the epoch is refused.
        StorageError: a file of the kit cannot be used.
    """
    before = kit.accepted()
    signed = _pending(kit, client, identity)
    if before is None or signed.roster == before:
        return None, ""
    if accept(kit, signed, identity):
        return signed.roster, f"epoch {signed.roster.epoch} of the roster is accepted"
    if _is_asked(kit, signed, identity) and signed.roster.index_of(identity.public) not in signed.signatures:
        line = f"epoch {signed.roster.epoch} of the roster waits for this site: tacit client approve {kit.folder}"
        return None, line
    return None, f"epoch {signed.roster.epoch} of the roster: {_absent(signed)}"


def _pending(kit: SiteKit, client: httpx.Client, identity: Identity) -> SignedRoster:
    """The newest epoch, or the first that this site has missed."""
    signed, accepted = fetch_roster(kit, client, identity), kit.accepted()
    if accepted and signed.roster.epoch > accepted.epoch + 1:
        return fetch_roster(kit, client, identity, accepted.epoch + 1)
    return signed


def _ask(
    kit: SiteKit,
    signed: SignedRoster,
    identity: Identity,
    digest: str,
    ask: Callable[[str], str],
    say: Callable[[str], None],
) -> None:
    """Shows a roster, and comes back if the operator approves it."""
    check_own(kit, signed.roster, identity)
    for line in describe(signed, identity.public):
        say(line)
    shown = readable(signed.roster.digest())
    if digest:
        if digest.replace(" ", "").lower() != signed.roster.digest().hex():
            raise Refused("roster", f"the digest that was approved is another than this one: {shown}")
        return
    say("Compare the digest and every fingerprint with the other sites over the telephone.")
    if ask("Are they the same at all sites? Type yes to sign: ").strip().lower() != "yes":
        raise Refused("roster", "the operator has not approved it")


def _is_asked(kit: SiteKit, signed: SignedRoster, identity: Identity) -> bool:
    """Whether this site's signature counts under an epoch: no root signs it, and this site is not revoked by it."""
    accepted = kit.accepted()
    root = accepted.root_key if accepted else signed.roster.root_key
    return not root and signed.roster.index_of(identity.public) in signed.roster.voters


def _absent(signed: SignedRoster) -> str:
    roster = signed.roster
    labels = [roster.members[index].label for index in sorted(roster.voters - set(signed.signatures))]
    return "waits for the root" if roster.root_key else f"waits for {', '.join(labels)}"


def _own_key(kit: SiteKit, roster: Roster, before: Roster | None, identity: Identity) -> bytes:
    """This site's key in a roster: between its revocation and its new key there is only the old one."""
    if any(member.key == identity.public for member in roster.members):
        check_own(kit, roster, identity)
        return identity.public
    old = [
        member.key for member in (before.members if before else ()) if member.label == kit.invitation.label
    ]
    return old[-1] if old else identity.public


def _headers(kit: SiteKit, identity: Identity, epoch: int = 0) -> dict[str, str]:
    return {HEADER: member_header(identity, kit.invitation.label, kit.invitation.key, time.time(), epoch)}


def _exchange(
    kit: SiteKit, client: httpx.Client, method: str, headers: dict[str, str], content: bytes
) -> bytes:
    """One request and its answer, of `_MAX_ROSTER` bytes at most."""
    import httpx

    address, body = kit.invitation.address, bytearray()
    try:
        with client.stream(method, ROSTER_PATH, headers=headers, content=content) as response:
            for part in response.iter_raw():  # as it came: a small answer must not become a large one here
                body += part
                if len(body) > _MAX_ROSTER:
                    raise RunFailed(f"{address}: the answer is too long")
    except httpx.HTTPError as error:
        kind = Away if isinstance(error, httpx.TransportError) and not _is_of_tls(error) else RunFailed
        raise kind(f"{address}: {str(error) or type(error).__name__}") from None
    if response.is_success:
        return bytes(body)
    if response.status_code == _UNAVAILABLE:
        raise Away(f"{address}: is not ready")
    what = {
        403: "this site's key is in no roster there",
        404: "there is no roster yet: the coordinator has not collected all requests",
        409: "another roster is being signed now",
    }
    raise RunFailed(f"{address}: {what.get(response.status_code, f'answered {response.status_code}')}")


def _is_of_tls(error: BaseException | None) -> bool:
    """Whether TLS is what failed: trying again would not help."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None
