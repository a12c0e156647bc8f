"""`tacit server` and `tacit client`: what they refuse, and what they show."""

import json
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

import client.cli
import server.cli
import server.following
from tacit.errors import ConfigError

LATER = "provisioning and TLS come with a later version"


def _refusal(command: object, *arguments: str) -> ConfigError:
    app = typer.Typer()
    app.command()(command)  # type: ignore[type-var]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, ConfigError)
    assert error.exit_code == 2
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        (server.cli.command, [], "tacit server --kit KIT"),
        (server.cli.command, ["--kit", "/no/such/folder"], "federation.toml"),
        (client.cli.node, [], "--insecure-loopback rehearses on one machine"),
        (client.cli.node, ["--site", "/proc"], "--insecure-loopback rehearses on one machine"),
        (server.cli.command, ["--insecure-loopback"], "both are needed"),
        (client.cli.node, ["--insecure-loopback"], "is needed: this site's folder"),
        (client.cli.node, ["--insecure-loopback", "--site", "/no/such/folder"], "is not a folder"),
        (client.cli.run, ["/no/such/folder"], "is not a folder"),
        (client.cli.run, ["/proc", "--profile", "tiny"], 'there is one profile: "edge"'),
        (
            client.cli.run,
            ["/proc", "--insecure-loopback", "--superlink", "192.0.2.1:8000"],
            "192.0.2.1 is another machine",
        ),
        (
            client.cli.node,
            ["--insecure-loopback", "--site", "/proc", "--superlink", "192.0.2.1:8000"],
            "192.0.2.1 is another machine",
        ),
    ],
)
def test_refusals_are_one_line_with_exit_code_2(command: object, arguments: list[str], reason: str) -> None:
    assert reason in str(_refusal(command, *arguments))


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:8000", "10.0.0.1:8000", "[2001:db8::1]:8000", "example.org:8000", "127.0.0.1.example.org:8000"],
)
def test_J12_insecure_mode_refuses_other_machines(address: str) -> None:
    with pytest.raises(ConfigError, match="is another machine"):
        client.cli.check_loopback(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "8000", ":8000", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536"]
)
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        client.cli.check_loopback(address)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "127.1.2.3:1", "localhost:65535", "[::1]:8000"])
def test_loopback_is_accepted(address: str) -> None:
    client.cli.check_loopback(address)


def test_each_finished_round_is_shown_once_and_half_a_line_not_at_all(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds.jsonl"
    rounds.write_text(json.dumps({"round": 1}) + "\n")
    console = Console(record=True, width=100, file=(tmp_path / "screen").open("w"))
    with console.file, Progress(console=console) as progress:
        follow = server.following.RoundFollower(rounds, progress, progress.add_task("training"))
        assert follow.num_rounds == 1  # of the run that this one resumes
        line = json.dumps({"round": 2, "seconds": 1.25, "metrics": {"accuracy": 0.5}})
        with rounds.open("a") as file:
            for part in (line[:9], line[9:], "\n"):
                file.write(part)
                file.flush()
                follow()
        follow()
        assert follow.num_rounds == 2
        rounds.write_text(json.dumps({"round": 1}) + "\n")  # a server that resumes took the second one back
        follow()
        assert follow.num_rounds == 1
    text = console.export_text()
    assert text.count("round 2  1.2 s  accuracy 0.5000") == 1
    assert "round 1" not in text
