"""The image without an engine: the Dockerfile's own steps lead to an installation that runs, with no more in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile import Image, in_the_context
from gateways import new_name
from installations import ROOT
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane.config import names

pytestmark = [
    pytest.mark.slow("installs packages into environments of its own, out of the index or its cache"),
    pytest.mark.timeout(600),
]

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
#: Who the image's user is here, where the tests are root's.
SOMEBODY = 65534 if os.geteuid() == 0 else os.geteuid()


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Made once. Not in pytest's directory, which is closed to other users."""
    root = Path(tempfile.mkdtemp(prefix="peerlane-image-"))
    root.chmod(0o755)
    try:
        yield Image(root, SOMEBODY)
    finally:
        shutil.rmtree(root)


def started(
    image: Image, words: list[str], *, user: int | None = None, output: Any = subprocess.PIPE, **settings: str
) -> subprocess.Popen[str]:
    """A command in the image, as its own user unless told otherwise."""
    environment = image.environment | {"HOME": image.here("/var/lib/peerlane")} | settings
    who = SOMEBODY if user is None else user
    program = shutil.which(words[0], path=environment["PATH"])
    assert program is not None, words
    assert program.startswith(image.here("/opt/peerlane/")) or words[0] in ("sh", "env"), "it comes out of the image"
    other: dict[str, Any] = {"user": who, "group": who, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        return subprocess.Popen(
            [program, *words[1:]],
            cwd=image.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **other,
        )
    except PermissionError:
        pytest.skip(f"{sys.base_prefix} is closed to other users")


def said(image: Image, *words: str, **settings: str) -> str:
    process = started(image, list(words), user=None, **settings)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return out


def test_its_own_command_runs_as_its_user(image: Image) -> None:
    assert image.user == "peerlane"
    assert "gateway" in said(image, *image.command)
    assert Path(image.here("/var/lib/peerlane")).stat().st_uid == SOMEBODY


def test_it_holds_what_its_lock_says_without_the_builder(image: Image) -> None:
    lock = set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / "constraints-image.txt").read_text(), flags=re.MULTILINE))
    listed = json.loads(said(image, "python", "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    installed = {re.sub(r"[-_.]+", "-", package["name"]).lower() for package in listed} - {"pip", "setuptools"}
    assert {"peerlane", "celery", "packaging", "pyroute2", "flower"} <= installed
    assert installed - {"peerlane"} <= lock
    assert "hatchling" not in installed


def test_its_health_is_a_gateways_where_one_is_named(image: Image, own_redis: RedisServer) -> None:
    own_redis.directory.chmod(0o755)
    own_redis.socket.chmod(0o777)
    for gateway, status in (("", 0), ("nobody", 3)):
        health = started(image, ["env", f"PEERLANE_GATEWAY={gateway}", *image.health], PEERLANE_REDIS_URL=own_redis.url)
        out, _ = health.communicate(timeout=60)
        assert health.returncode == status, out


def test_its_labels_say_what_it_is(image: Image) -> None:
    assert image.labels["org.opencontainers.image.title"] == "Peerlane"
    assert image.labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_a_directory_of_settings_and_keys_can_be_passed_by_every_user(image: Image) -> None:
    assert stat.S_IMODE(Path(image.here("/etc/peerlane")).stat().st_mode) == 0o755


def test_the_gateway_of_compose_serves_and_its_beat_schedules(
    image: Image, own_redis: RedisServer, tmp_path: Path
) -> None:
    own_redis.directory.chmod(0o755)
    own_redis.socket.chmod(0o777)
    name, logs = new_name(), {part: tmp_path / part for part in ("gateway", "beat")}
    settings = {"PEERLANE_REDIS_URL": own_redis.url, "PEERLANE_SWEEP_EVERY": "1"}
    words = {part: list(SERVICES[part]["command"]) for part in logs}
    words["gateway"] = [name if word == "iad" else word for word in words["gateway"]]
    words["gateway"] += ["--dataplane", "memory", "--private-key-file", image.here("/etc/peerlane/wg0.key")]
    processes: list[subprocess.Popen[str]] = []

    def up(part: str, sentence: str) -> bool:
        assert all(process.poll() is None for process in processes), [log.read_text() for log in logs.values()]
        return sentence in logs[part].read_text()

    try:
        # The gateway is root's in compose.yaml, and makes the key.
        for part, user in (("gateway", os.geteuid()), ("beat", None)):
            with logs[part].open("w") as output:
                processes.append(started(image, words[part], user=user, output=output, **settings))
            if part == "gateway":
                eventually(lambda: own_redis.redis.hget(names.gateway_key(name), "heartbeat"), "a writer")
        # As another user, after root has made the directory's content.
        created = said(
            image, "peerlane", "peer", "create", name, "--public-key", some_key(), "--timeout", "30", **settings
        )
        assert name in created
        health = started(image, ["env", f"PEERLANE_GATEWAY={name}", *image.health], user=None, **settings)
        out, _ = health.communicate(timeout=60)
        assert (health.returncode, out) == (0, f"{name} is active\n")
        eventually(lambda: up("beat", f"sweep {name}: asked for"), "a slot of beat's")
    finally:
        for process in processes:
            process.terminate()
        assert [process.wait(60) for process in processes] == [0] * len(processes)


@pytest.mark.parametrize(
    ("path", "through"), [("constraints-image.txt", True), ("workers", True), ("tests", False), (".git", False)]
)
def test_the_engine_gets_what_the_steps_copy_and_no_more(path: str, through: bool) -> None:  # noqa: FBT001 - a case
    assert in_the_context(path) is through
