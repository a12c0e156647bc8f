"""`tacit client`: what a site does, from its enrolment to what its data have spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tacit.errors import ConfigError

app = typer.Typer(
    help="Take part in a federation as one site.", add_completion=False, pretty_exceptions_enable=False
)

Kit = Annotated[Path, typer.Argument(help="This site's folder.")]
SuperLink = Annotated[str, typer.Option(help="HOST:PORT of the SuperLink.")]
InsecureLoopback = Annotated[
    bool, typer.Option("--insecure-loopback", help="Rehearse on this one machine, without TLS.")
]


@app.command()
def run(
    kit: Kit,
    data: Annotated[Path | None, typer.Option(help="The file with the records, from now on.")] = None,
    approve: Annotated[
        str, typer.Option(help="Digest of the roster, compared before: sign it without asking.")
    ] = "",
    profile: Annotated[
        str, typer.Option(help='"edge": one torch thread, and rarer questions when idle.')
    ] = "",
    health_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on loopback for grpc.health.v1; 0 = none.")
    ] = 0,
    insecure_loopback: InsecureLoopback = False,
    superlink: SuperLink = "127.0.0.1:8000",
) -> None:
    """Take part until Ctrl-C: answer the coordinator's rounds, as far as policy and ledger allow."""
    from client import running

    folder = _folder(kit)
    running.check_profile(profile)
    if data is not None:
        from client.site import set_data

        set_data(folder, data)
    if insecure_loopback:
        check_loopback(superlink)
        running.run_on_loopback(folder, superlink, profile, health_port)
    else:
        running.run_in_federation(folder, approve, profile, health_port)


@app.command()
def enroll(
    kit: Kit,
    data: Annotated[
        Path | None, typer.Option(help="The file with the records: its rows are counted, to two digits.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="The number of rows to declare instead.")] = None,
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="Put the old keys aside: after a revocation.")
    ] = False,
) -> None:
    """Make this site's keys and its request to join; compare the fingerprint with the coordinator."""
    from client.enrolment import enroll as make_request

    folder = _folder(kit)
    make_request(folder, data=data, rows=rows, new_keys=new_keys, say=typer.echo)
    if data is not None:
        from client.site import set_data

        set_data(folder, data)


@app.command()
def approve(
    kit: Kit,
    digest: Annotated[
        str, typer.Option(help="Digest of the roster, compared before: sign it without asking.")
    ] = "",
    wait: Annotated[bool, typer.Option(help="Wait until all others have signed, too.")] = True,
) -> None:
    """Show the newest roster; after comparing it with the other sites, sign it."""
    from client.approval import approve as approve_roster

    approve_roster(_folder(kit), digest=digest, say=typer.echo, wait=wait)


@app.command()
def check(
    kit: Kit,
    experiment: Annotated[
        Path | None, typer.Option(help="What will be trained: schema and policy are checked against it.")
    ] = None,
    insecure_loopback: InsecureLoopback = False,
) -> None:
    """Find out before the first round whether everything is in order. Exit code 1 if something is not."""
    from client.check import check_kit, show
    from tacit import config

    planned = config.load(experiment) if experiment is not None else None
    findings = check_kit(_folder(kit), planned, connects=not insecure_loopback)
    show(findings)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def ledger(
    kit: Kit,
    delta: Annotated[
        float, typer.Option(help="At this delta; 0 = that of policy.toml, or of the runs.")
    ] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what has been spent on this site's data, by run."""
    from client.spending import show, spending

    show(spending(_folder(kit), delta), as_json=json)


@app.command()
def monitor(
    kit: Kit,
    model: Annotated[
        Path, typer.Option(metavar="RUN", help="Folder of the run that trained the model; see tacit export.")
    ],
    data: Annotated[
        Path,
        typer.Option(metavar="FILE", help="New records, columns as in training; the label may be missing."),
    ],
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare new records with this site's training data: has anything drifted? Nothing is sent.

    Each column has its population stability index (PSI), by the deciles or
    categories of the training data. By convention, not law, above 0.1 is worth
    a look ("watch") and above 0.25 has drifted. Beside it stands what chance
    alone gives, on average and at 99.9 %; what is not clearly more is "chance".
    The prediction has a PSI too, and with labels AUROC and calibration error.

    Exit code: 0 = nothing has drifted, 1 = something has, 2 = a file or an
    option is wrong.

    \b
    tacit client monitor kits/hospital-a --model runs/my --data march.csv
    tacit client monitor kits/hospital-a --model runs/my --data march.csv --json
    """
    from client import monitor as monitoring

    found = monitoring.monitor(_folder(kit), model, data)
    monitoring.show(found, as_json=json)
    if found.drifted:
        raise typer.Exit(1)


@app.command()
def node(
    site: Annotated[Path | None, typer.Option(help="This site's folder, with data.csv in it.")] = None,
    superlink: SuperLink = "127.0.0.1:8000",
    insecure_loopback: InsecureLoopback = False,
) -> None:
    """Take part with Flower's own node in place of ours, on loopback, until Ctrl-C."""
    if not insecure_loopback:
        raise ConfigError(
            "--insecure-loopback rehearses on one machine; docs/deployment.md says how to start Flower's"
            " node in a federation"
        )
    check_loopback(superlink)
    if site is None:
        raise ConfigError("is needed: this site's folder", key="--site")
    from client.node import run_node

    raise typer.Exit(run_node(_folder(site, "--site"), superlink))


def _folder(path: Path, key: str = "") -> Path:
    if not path.is_dir():
        raise ConfigError("is not a folder", source="" if key else path, key=key)
    return path.resolve()


def check_loopback(address: str) -> None:
    """Raises `ConfigError` unless `address` is HOST:PORT with a host that never leaves this machine."""
    from tacit.processes import is_loopback

    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is not HOST:PORT", key="--superlink")
    if not is_loopback(host):
        raise ConfigError(
            f"{host} is another machine, and --insecure-loopback has no TLS: refused", key="--superlink"
        )
