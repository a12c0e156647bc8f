"""`tacit provision`: the kits of a federation, and the epochs of its roster."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tacit.errors import ConfigError, Refused, StorageError

if TYPE_CHECKING:
    import click

    from server.provisioning import CoordinatorKit
    from tacit.secagg.signed_roster import SignedRoster


class _BareForm(TyperGroup):
    """`tacit provision FILE` is `tacit provision create FILE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["create", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_BareForm,
    help="Make the kits of a federation, and keep its roster. Begin with: tacit provision federation.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Kit = Annotated[Path, typer.Option(help="The coordinator's kit.")]
DEFAULT_KIT = Path("kits") / "coordinator"


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="federation.toml: name, address, sites, rules.")],
    out: Annotated[Path, typer.Option(help="Folder for the kits.")] = Path("kits"),
    root: Annotated[
        Path | None,
        typer.Option(help="Public key of an offline root, which signs rosters in place of the sites."),
    ] = None,
) -> None:
    """Make the coordinator's keys and a kit for each site; what is there already stays."""
    from server.provisioning import provision

    kit, made = provision(file, out, root=root)
    typer.echo(f"coordinator  {kit.folder}: its keys stay there")
    for label in made:
        typer.echo(f"new kit      {out / label}: give it to the site, README.txt in it says what to do")
    _echo_server(kit)


@app.command()
def collect(
    requests: Annotated[
        list[Path], typer.Argument(help="request.json files of sites, or folders with such.")
    ],
    kit: Kit = DEFAULT_KIT,
    replace: Annotated[
        bool, typer.Option("--replace", help="Sites may send another request than before.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin the first epoch anew, without its signatures.")
    ] = False,
) -> None:
    """Check the requests of sites and put the roster together, for the sites to sign."""
    from server import epochs

    absent, signed = epochs.collect(_open(kit), requests, replace_requests=replace, restart=restart)
    if signed is not None:
        _echo_roster(_open(kit), signed)
    if absent:
        typer.echo(f"no request yet from: {', '.join(absent)}")


@app.command()
def revoke(
    labels: Annotated[list[str], typer.Argument(help="Members whose key counts no longer.")],
    kit: Kit = DEFAULT_KIT,
) -> None:
    """Propose an epoch without some members; to come back, they make new keys and send a new request."""
    from server import epochs

    opened = _open(kit)
    _echo_roster(opened, epochs.propose(opened, revoke=labels))


@app.command()
def strike(kit: Kit = DEFAULT_KIT) -> None:
    """Propose an epoch in which no cohort may contain the members that runs have proven to cheat."""
    from server import epochs

    opened = _open(kit)
    found = epochs.proven_cheats(opened)
    if not found:
        typer.echo("no run has proven a member to cheat")
        return
    _echo_roster(opened, epochs.propose(opened, strikes=found))


@app.command()
def renew(
    kit: Kit = DEFAULT_KIT,
    identities: Annotated[
        bool,
        typer.Option("--identities", help="Also propose an epoch with later last days of all identities."),
    ] = False,
) -> None:
    """A new TLS certificate of the server, from the same CA for the same key; a running server takes it up."""
    from server import epochs
    from server.provisioning import certificate_expiry, renew_certificate

    opened = _open(kit)
    renew_certificate(opened)
    typer.echo(f"{kit / 'tls.pem'}: until {certificate_expiry(kit / 'tls.pem'):%Y-%m-%d}")
    if identities:
        _echo_roster(opened, epochs.propose(opened, renew=True))


@app.command()
def show(kit: Kit = DEFAULT_KIT) -> None:
    """What is there, who has signed, and what expires when."""
    from server import epochs
    from server.provisioning import certificate_expiry

    opened = _open(kit)
    typer.echo(
        f"{opened.federation.name}, {opened.federation.address}, {len(opened.federation.sites)} sites declared"
    )
    for name in ("ca.pem", "tls.pem"):
        typer.echo(f"{name:8} until {certificate_expiry(kit / name):%Y-%m-%d}")
    _echo_server(opened)
    signed = epochs.proposal(opened)
    if signed is None:
        typer.echo("no roster yet: tacit provision collect")
    else:
        _echo_roster(opened, signed)
    for line in epochs.warnings(opened, datetime.now(UTC).date()):
        typer.echo(f"warning: {line}")


@app.command()
def schema(
    experiment: Annotated[Path, typer.Argument(help="An experiment of the task and model in question.")],
) -> None:
    """Print the digest of a model's schema: in rules.model_schemas, it says what may be trained and nothing else."""
    from server.experiments import schema_of
    from tacit import config

    loaded = config.load(experiment)
    if not loaded.federation.sites:  # of them nothing in a model depends
        from tacit.config import Federation, Site

        sites = tuple(Site(label=f"site-{i}", rows=10**6) for i in range(10))
        loaded = loaded.with_tables(federation=Federation(sites=sites))
    typer.echo(schema_of(loaded).hex())


@app.command("make-root")
def make_root(
    key: Annotated[Path, typer.Argument(help="File for the secret key; its public half goes to FILE.pub.")],
) -> None:
    """Make the key of an offline root, on the machine of its holder. Whoever holds it is trusted by all sites."""
    from tacit.secagg.identity import Identity, create_private, fingerprint

    identity = Identity.load(key) if key.exists() else Identity.create(key)
    public = key.with_name(key.name + ".pub")
    if not public.exists():
        create_private(public, f"{identity.public.hex()}\n".encode())
    typer.echo(f"{public}: {fingerprint(identity.public)}")


@app.command("sign-root")
def sign_root(
    roster: Annotated[Path, typer.Argument(help="roster.json, as the coordinator shows it.")],
    key: Annotated[Path, typer.Option(help="The root's secret key.")],
    digest: Annotated[
        str, typer.Option(help="Digest that was compared before; without it, you are asked.")
    ] = "",
) -> None:
    """Sign an epoch as the offline root, on the machine of its holder; then: tacit provision add-signature."""
    from tacit.durable import write_file
    from tacit.roster_text import describe
    from tacit.secagg.identity import Identity, readable

    signed, identity = _read(roster), Identity.load(key)
    if any(identity.public == member.key for member in signed.roster.members):
        raise ConfigError("this is the key of a member, not of a root", source=key)
    for line in describe(signed):
        typer.echo(line)
    expected = signed.roster.digest()
    if digest and digest.replace(" ", "").lower() != expected.hex():
        raise Refused("roster", f"the digest is {readable(expected)}")
    if (
        not digest
        and typer.prompt("Is this what the sites have agreed on? Type yes to sign").strip() != "yes"
    ):
        raise Refused("roster", "not approved")
    write_file(roster, signed.sign(identity).encode())
    typer.echo(f"{roster}: signed")


@app.command("add-signature")
def add_signature(
    roster: Annotated[Path, typer.Argument(help="A signed copy of the newest roster.json.")],
    kit: Kit = DEFAULT_KIT,
) -> None:
    """Keep the signatures of a copy of the roster that came by hand, such as the root's."""
    from server import epochs
    from tacit.errors import ProtocolError

    opened = _open(kit)
    try:
        signed = epochs.add_signatures(opened, _read(roster))
    except ProtocolError as error:
        raise ConfigError(str(error), source=roster) from None
    _echo_roster(opened, signed)


def _open(kit: Path) -> CoordinatorKit:
    from server.provisioning import CoordinatorKit

    return CoordinatorKit.open(kit)


def _read(path: Path) -> SignedRoster:
    from tacit.errors import ProtocolError
    from tacit.secagg.signed_roster import SignedRoster

    try:
        return SignedRoster.decode(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ProtocolError as error:
        raise ConfigError(str(error), source=path) from None


def _echo_server(kit: CoordinatorKit) -> None:
    from tacit.secagg.identity import fingerprint

    typer.echo(f"fingerprint of the coordinator  {fingerprint(kit.server_identity().public)}")


def _echo_roster(kit: CoordinatorKit, signed: SignedRoster) -> None:
    from server import epochs
    from tacit.roster_text import describe

    for line in describe(signed):
        typer.echo(line)
    problem: Any = epochs.missing_signatures(kit)
    typer.echo(f"epoch {signed.roster.epoch}: {problem or 'in force'}")
