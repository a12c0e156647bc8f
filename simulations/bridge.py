"""A federation to try a bridged Flower app in: `python -m simulations.bridge MODULE:APP --out FOLDER`.

One command makes all keys and signs for everybody; where it matters, each site makes its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tomli_w
import typer

from simulations.enrolment import enrol
from tacit.bridge import FILE, Terms
from tacit.config import Federation, Site
from tacit.errors import ConfigError


def make_federation(out: Path, terms: Terms, rows: Sequence[int]) -> None:
    """Writes what a server finds in `TACIT_FEDERATION` and, in folders 0, 1, 2..., what each site has.

    Args:
        out: the folder; files of an earlier call are kept.
        terms: go to the server and to every site.
        rows: declared size of each site.

    Raises:
        ConfigError: so many sites cannot make a sum by these terms.
    """
    sites = tuple(Site(label=f"site-{i + 1}", rows=n) for i, n in enumerate(rows))
    experiment = terms.experiment(Federation(sites=sites))
    for i, site in enumerate(sites):
        folder = out / str(i)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        description = {"label": site.label, "data_set": site.label}
        _write(folder / "site.toml", tomli_w.dumps(description))
        _write(folder / "policy.toml", tomli_w.dumps({"allowed_tasks": [terms.app]}))
        _write(folder / FILE, terms.to_toml())
    _write(out / FILE, terms.to_toml())
    enrol(out, experiment)


def _write(path: Path, text: str) -> None:
    if not path.exists():
        path.write_text(text, encoding="utf-8")


def command(
    app: Annotated[str, typer.Argument(help='The ClientApp, as "module:object".')],
    out: Annotated[Path, typer.Option(help="Folder to make; may hold a bridge.toml of your own.")],
    sites: Annotated[int, typer.Option(min=3, help="How many sites.")] = 3,
) -> None:
    """Make keys, roster, policies and bridge.toml for sites on this machine."""
    terms = Terms.load(out / FILE) if (out / FILE).exists() else Terms(app=app)
    if terms.app != app:
        raise ConfigError(f"is for {terms.app}", source=out / FILE, key="app")
    make_federation(out, terms, [1] * sites)
    typer.echo(f"{sites} sites in {out}; what they have agreed on is in {out / FILE}")


if __name__ == "__main__":
    typer.run(command)
