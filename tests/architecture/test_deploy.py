"""Container images, units and manifests: they are not built here, so they are read, and their commands are parsed."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tacit import cli
from tacit.health import serve_health
from tests.architecture.sources import ROOT, text
from tests.architecture.test_names import PYPROJECT

DOCKERFILE = "deploy/Dockerfile"
UNITS = ("deploy/systemd/tacit-client.service", "deploy/systemd/tacit-server.service")
MANIFESTS = ("deploy/kubernetes/client.yaml", "deploy/kubernetes/server.yaml")
PROGRAM = "/opt/tacit/bin/tacit"
PROBE = ["python", "/opt/tacit/probe.py"]

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Name and rest of each instruction; continued lines joined, comments dropped."""
    lines = [line for line in text(DOCKERFILE).splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def stages() -> dict[str, list[Instruction]]:
    """The instructions of each stage, those of the stage that it builds on first."""
    found: dict[str, list[Instruction]] = {}
    for name, rest in instructions():
        if name == "FROM":
            base, _, current = rest.partition(" AS ")
            found[current] = list(found.get(base, [("FROM", base)]))
        elif found:
            found[current].append((name, rest))
    return found


def last(stage: list[Instruction], name: str) -> str:
    return [rest for instruction, rest in stage if instruction == name][-1]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Where a command stands, and the words after `tacit`."""
    for name in ("server", "client"):
        stage = stages()[name]
        assert yaml.safe_load(last(stage, "ENTRYPOINT")) == ["tacit"]
        yield f"{DOCKERFILE} {name}", yaml.safe_load(last(stage, "CMD"))
    for unit in UNITS:
        program, *words = shlex.split(service(unit)["ExecStart"])
        assert program == PROGRAM
        yield unit, words
    for manifest in MANIFESTS:
        for container in containers(manifest):
            yield manifest, container["args"]


def service(path: str) -> dict[str, str]:
    return dict(unit(path)["Service"])


def unit(path: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True, delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text(path))
    return parser


def documents(path: str) -> dict[str, dict[str, Any]]:
    """The objects of a manifest by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(text(path))}


def pod(path: str) -> dict[str, Any]:
    found: dict[str, Any] = documents(path)["Deployment"]["spec"]["template"]["spec"]
    return found


def containers(path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pod(path)["containers"]
    return found


def parse(words: list[str]) -> click.Context:
    """What the program makes of its arguments; nothing is run. `click.UsageError` for what it does not know."""
    command = cli.load(words[0])
    rest = words[1:]
    context = click.Context(command, info_name=words[0])
    while isinstance(command, click.Group):
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
    return command.make_context(words[0], list(rest))


def test_every_command_and_every_option_in_deploy_is_one_that_tacit_has() -> None:
    for place, words in commands():
        context = parse(words)
        values = {str(value) for value in context.params.values()}
        assert any("kit" in value for value in values), f"{place}: {words} takes no kit"


def test_an_option_that_tacit_does_not_have_is_seen() -> None:
    with pytest.raises(click.UsageError):
        parse(["client", "run", "/kit", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parse(["client", "no-such-command"])


@pytest.mark.parametrize("target", ["server", "client"])
def test_an_image_runs_as_nobody_special_and_says_how_it_is(target: str) -> None:
    stage = stages()[target]
    assert int(last(stage, "USER").split(":")[0]) >= 10_000
    assert last(stage, "VOLUME") == "/kit"
    health = last(stage, "HEALTHCHECK")
    assert yaml.safe_load(health.partition("CMD ")[2])[:2] == PROBE
    used = {name for name, _ in stage}
    assert "ADD" not in used
    # The image in the end has no compiler's folder and no sources: it builds on the base, not on the build stage.
    assert not any("/source" in rest for _, rest in stage)


def test_the_base_image_has_a_tag_and_a_python_that_tacit_supports() -> None:
    """By digest it can be pinned only where there is a registry; the file says how."""
    base = next(rest for name, rest in instructions() if name == "ARG" and rest.startswith("BASE="))
    image, _, tag = base.removeprefix("BASE=").partition(":")
    assert (image, tag[:4]) == ("python", "3.11")
    assert tag.split("-")[0] != "latest"
    assert all(rest.startswith(("${BASE} ", "node ")) for name, rest in instructions() if name == "FROM")


def test_an_image_gets_what_is_installed_and_nothing_else() -> None:
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    packages = {package.split(".")[0] for package in PYPROJECT["tool"]["setuptools"]["packages"]}
    assert copied == packages | {
        "constraints.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "deploy/probe.py",
    }
    assert all((ROOT / source).exists() for source in copied)


def test_no_secret_is_built_into_an_image() -> None:
    settings = [rest for name, rest in instructions() if name in ("ARG", "ENV")]
    assert not any(re.search("(?i)key|token|secret|password", rest) for rest in settings)


def test_nothing_is_reported_to_anybody_from_an_image() -> None:
    environment = last(stages()["client"], "ENV")
    assert "FLWR_TELEMETRY_ENABLED=0" in environment and "FLWR_DISABLE_UPDATE_CHECK=1" in environment


@pytest.mark.parametrize("path", UNITS)
def test_a_unit_gives_its_program_one_folder_and_no_privilege(path: str) -> None:
    settings = service(path)
    assert settings["User"] not in ("", "root")
    assert (settings["ProtectSystem"], settings["StateDirectory"]) == ("strict", "tacit")
    assert settings["StateDirectoryMode"] == "0700" and settings["UMask"] == "0077"
    assert settings["NoNewPrivileges"] == "yes" and settings["CapabilityBoundingSet"] == ""
    assert settings["LimitCORE"] == "0"  # a core dump has the keys in it
    assert settings["Restart"] == "always" and "MemoryMax" in settings
    words = shlex.split(settings["ExecStart"])
    assert f"/var/lib/{settings['StateDirectory']}/kit" in words


@pytest.mark.parametrize("path", UNITS)
def test_a_unit_is_what_systemd_takes(path: str, tmp_path: Path) -> None:
    known = {"Unit", "Service", "Install"}
    assert set(unit(path).sections()) == known
    program = shutil.which("systemd-analyze")
    if program is None:  # no systemd here, so the sections are all that can be checked
        return
    here = text(path).replace(PROGRAM, str(Path(sysconfig.get_path("scripts")) / "tacit"))
    here = re.sub(
        "^(User|Group)=.*$", r"\1=root", here, flags=re.MULTILINE
    )  # `tacit` is no user of this machine
    (tmp_path / Path(path).name).write_text(here)
    done = subprocess.run(
        [program, "verify", str(tmp_path / Path(path).name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", MANIFESTS)
def test_a_pod_has_limits_probes_and_no_privilege(path: str) -> None:
    spec = pod(path)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == int(last(stages()["client"], "USER").split(":")[0])
    assert "fsGroup" not in spec["securityContext"]  # it would open the keys to the group
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not any("hostPath" in volume for volume in spec["volumes"])
    for container in containers(path):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]} and "privileged" not in context
        assert (
            set(container["resources"]["limits"])
            == {"cpu", "memory"}
            == set(container["resources"]["requests"])
        )
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["exec"]["command"][:2] == PROBE
        assert not container["image"].endswith((":latest", container["name"]))


@pytest.mark.parametrize("path", MANIFESTS)
def test_a_kit_has_one_writer(path: str) -> None:
    """Two processes on one ledger: the second is refused, and a rollout would never end."""
    objects = documents(path)
    spec = objects["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert objects["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOncePod"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in pod(path)["volumes"] if "persistentVolumeClaim" in v
    ]
    assert claims == [objects["PersistentVolumeClaim"]["metadata"]["name"]]


def test_from_outside_only_the_front_can_be_reached() -> None:
    server, client = documents(MANIFESTS[1]), documents(MANIFESTS[0])
    port = int(last(stages()["server"], "EXPOSE"))
    ingress = server["NetworkPolicy"]["spec"]["ingress"]
    assert ingress == [{"ports": [{"protocol": "TCP", "port": port}]}]
    assert [p["port"] for p in server["Service"]["spec"]["ports"]] == [port]
    assert [p["containerPort"] for p in containers(MANIFESTS[1])[0]["ports"]] == [port]
    assert client["NetworkPolicy"]["spec"]["ingress"] == [] and "Service" not in client
    assert {"protocol": "TCP", "port": port} in client["NetworkPolicy"]["spec"]["egress"][-1]["ports"]


@pytest.mark.parametrize(("path", "target"), [(MANIFESTS[0], "client"), (MANIFESTS[1], "server")])
def test_who_is_asked_for_health_answers_there(path: str, target: str) -> None:
    image = yaml.safe_load(last(stages()[target], "HEALTHCHECK").partition("CMD ")[2])
    (container,) = containers(path)
    assert (
        container["livenessProbe"]["exec"]["command"] == container["startupProbe"]["exec"]["command"] == image
    )
    for words in (container["args"], yaml.safe_load(last(stages()[target], "CMD"))):
        assert parse(words).params["health_port"] == int(image[-1])


def test_the_server_listens_where_the_pod_is_reached() -> None:
    port = int(last(stages()["server"], "EXPOSE"))
    for words in (containers(MANIFESTS[1])[0]["args"], yaml.safe_load(last(stages()["server"], "CMD"))):
        assert parse(words).params["port"] == port


def test_the_probe_knows_alive_from_connected_and_from_gone() -> None:
    with closing(serve_health(0)) as health:
        assert [probe(health.port), probe(health.port, "client")] == [0, 1]
        health.set("client", True)
        assert probe(health.port, "client") == 0
    assert probe(health.port) == 1


def probe(*words: object) -> int:
    command = [sys.executable, str(ROOT / "deploy" / "probe.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, check=False).returncode
