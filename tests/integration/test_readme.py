"""What the README and the pages of docs/ show was run as it stands there, and what they name exists.

`make demo` and `make test` are run by whoever runs these tests; here `make` is asked what it would do.
"""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.faults import Fault
from simulations.rehearsal import Rehearsed
from tacit import config
from tacit.bridge import Terms
from tacit.cli import COMMANDS, load, main
from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.federation import FederationFile
from tacit.privacy.policy import SitePolicy
from tests.architecture.sources import ROOT, project_files, text

PAGES = sorted(name for name in project_files() if name.endswith(".md"))
FOLDERS = ("tacit", "client", "server", "strategies", "simulations", "deploy", "tests", "docs")
SCENARIO = "simulations/scenarios/breast_cancer.toml"
SHORT = ("--quiet", "--set", "training.rounds=2", "--set", "simulation.baselines=false")


def blocks(page: str, kind: str = "") -> list[str]:
    """Fenced blocks of a page, of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text(page), re.M | re.S)
    return [content for its, content in found if its == kind]


def commands(page: str) -> list[list[str]]:
    """Arguments of every `tacit` command in a page's blocks."""
    lines = (line for block in blocks(page) for line in block.splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if re.match(r"(\.venv/bin/)?tacit ", line)]


def _tacit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a reader of the README stands, after the first command of its three uses."""
    path = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert _tacit(*commands("README.md")[0]) == 0
        yield path


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def test_the_readme_begins_with_its_two_commands() -> None:
    assert blocks("README.md")[0] == "make demo\nmake test\n"
    assert text("README.md").index("make demo") < 60


@pytest.mark.parametrize("page", PAGES)
def test_make_knows_what_a_page_tells_one_to_make(page: str) -> None:
    named = "\n".join([*blocks(page), *re.findall(r"`(make [^`]+)`", text(page))])
    for target in sorted(set(re.findall(r"\bmake ([a-z]+)", named))):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    if page == "README.md":
        plan = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True).stdout
        assert f"simulate {SCENARIO}" in plan


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    names = re.findall(rf"`((?:{'|'.join(FOLDERS)})/(?!\d)[^`\s:*<]*)`", text(page))
    names += re.findall(r"`([A-Z]+\.md)`", text(page))
    names += [str(Path(page).parent / link) for link in re.findall(r"\]\((?!https?:)([^)#]+)", text(page))]
    absent = [name for name in names if not (ROOT / name).exists()]
    assert absent == []


def test_the_readme_lists_all_folders_and_pages() -> None:
    layout = next(block for block in blocks("README.md") if block.startswith("tacit/"))
    listed = set(re.findall(r"[\w-]+\.md|[\w-]+/", layout))
    pages = {Path(page).name for page in PAGES if re.fullmatch(r"docs/[\w-]+\.md", page)}
    assert listed == pages | {f"{name}/" for name in FOLDERS if name != "tests"} | {
        "decisions/",
        "scenarios/",
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one_that_tacit_takes(page: str, folder: Path) -> None:
    for name, *arguments in commands(page):
        load(name).make_context(name, [*arguments], resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES)
def test_every_toml_block_of_a_page_is_an_experiment_a_policy_or_a_fault_list(page: str) -> None:
    for block in blocks(page, "toml"):
        tables = tomllib.loads(block)
        if set(tables) <= set(SitePolicy.model_fields):
            SitePolicy.model_validate(tables)
        elif "app" in tables:
            Terms.model_validate(tables)
        elif "address" in tables:
            FederationFile.model_validate(tables)
        elif set(tables) == {"fault"}:
            assert [Fault.model_validate(fault) for fault in tables["fault"]]
        else:
            assert isinstance(config.parse({"name": "page", **tables}, source=page), Experiment)


def test_the_simulations_of_the_readme_run(folder: Path) -> None:
    simulations = [arguments for arguments in commands("README.md") if arguments[0] == "simulate"]
    for arguments in simulations:
        assert _tacit(*arguments, *SHORT) == 0
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["epsilon-1", "my", "not-private"]
    my, strict, plain = (
        _report(folder / "runs" / name)["privacy"] for name in ("my", "epsilon-1", "not-private")
    )
    assert [entry["target_epsilon"] for entry in (*my, *strict)] == [3.0, 1.0]
    assert plain[0]["epsilon"] == "inf"
    for name in ("report.html", "privacy-statement.md"):
        assert (folder / "runs" / "my" / name).stat().st_size > 1000


def test_the_rehearsal_of_the_readme_is_of_as_many_sites_as_its_experiment_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/integration/test_rehearsal.py runs one."""
    ((_, file),) = (c for c in commands("README.md") if c[0] == "rehearse")
    wanted: list[Experiment] = []

    def rehearse(experiment: Experiment, *_: object) -> Rehearsed:
        wanted.append(experiment)
        return Rehearsed(0, folder, None, {})

    monkeypatch.setattr("simulations.rehearsal.rehearse", rehearse)
    assert _tacit("rehearse", file) == 0
    (number,) = (experiment.partition.num_clients for experiment in wanted)
    with pytest.raises(ConfigError, match="max_dropouts"):
        config.load(folder / file, [f"partition.num_clients={number - 1}"])


def test_the_six_commands_of_the_readme_are_those_of_the_first_hour() -> None:
    """tests/integration/test_deployment_page.py runs them."""
    mine, others = commands("README.md"), commands("docs/deployment.md")
    six = mine[[c[0] for c in mine].index("rehearse") + 1 :]
    assert [c[0] for c in six] == ["provision", "client", "provision", "server", "client", "submit"]
    places = [others.index(command) for command in six]
    assert places == sorted(places)


def test_the_site_folders_on_loopback_are_those_that_server_and_clients_take(folder: Path) -> None:
    partition, server, *clients = commands("docs/deployment.md")[-5:]
    assert _tacit(*partition) == 0
    experiment = config.load(folder / server[2])
    assert [name for name, *_ in clients] == ["client"] * len(experiment.federation.sites)
    for client in clients:
        assert (folder / client[3] / "data.csv").exists()
        assert (folder / client[3] / "policy.toml").exists()


def test_the_table_of_the_readme_is_that_of_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert _tacit("simulate", str(ROOT / SCENARIO), "--out", str(tmp_path / "demo")) == 0
    header, *rows = _cells(next(block for block in blocks("README.md") if block.startswith("┃")))
    printed = {row[0]: row for row in _cells(capsys.readouterr().out)}
    shown = [printed["model"].index(name) for name in header]
    for row in rows:
        of_this_run = [printed[row[0]][column] for column in shown]
        assert of_this_run[2] == row[2]
        # The noise of each run is its own. Of 1000 runs the median is 0.997, what README.md shows, and the least 0.982;
        # their tail falls by a factor of e every 0.0025, so that 0.05 below has a chance of about 1e-8.
        spread = 0.005 if row[2] == "not private" else 0.05
        assert float(of_this_run[1]) == pytest.approx(float(row[1]), abs=spread)


def _cells(table: str) -> list[list[str]]:
    lines = (line.strip() for line in table.splitlines())
    return [
        [cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines if line[:1] in ("┃", "│")
    ]


def test_what_would_be_without_a_promise_is_refused(folder: Path) -> None:
    for words in (["server", "my.toml", "--state", "s"], ["client", "node", "--site", "."]):
        assert _tacit(*words) == 2
    with pytest.raises(ConfigError, match="input should be 'tacit-1'"):
        config.load(Path("my.toml"), ['secure_aggregation.protocol="full"'])


def test_the_changelog_keeps_its_form_and_names_every_command() -> None:
    changes = text("CHANGELOG.md")
    headings = re.findall(r"^(#+ .*)$", changes, re.M)
    assert headings[:2] == ["# Changelog", "## [Unreleased]"]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for heading in headings[2:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading) or heading[4:] in kinds
    for name in COMMANDS:
        assert f"`tacit {name}`" in changes
