"""Commands started in a directory whose modules have the names of what they import: they behave as anywhere.

A gateway is started by root, maybe from a user's directory; nothing of that directory may become root's code.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gateways import MakeSettings, clean_environment, close, new_name
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.status.fleet_snapshot import read_gateway

ROOT = Path(__file__).resolve().parents[2]
PEERLANE = Path(sys.executable).parent / "peerlane"
#: Every name that an import could have: Python's own, all that is installed, ours, and those that Celery looks for.
NAMES = {
    *sys.stdlib_module_names,
    *importlib.metadata.packages_distributions(),
    *("peerlane", "config", "tasks", "workers"),
    *("celeryconfig", "sitecustomize", "usercustomize"),
}

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory that ends whoever imports from it, and keeps a list of them."""
    directory = tmp_path / "hostile"
    directory.mkdir()
    report = tmp_path / "imported"
    body = f"open({str(report)!r}, 'a').write(__name__ + '\\n')\nraise SystemExit('HOSTILE ' + __name__)\n"
    for name in filter(str.isidentifier, NAMES):
        (directory / f"{name}.py").write_text(body)
    for name in ("config", "peerlane"):  # as a package, which goes before the module
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(body)
    return directory


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """What of the directory was imported; not there if nothing was."""
    return tmp_path / "imported"


def test_the_directory_is_hostile(hostile: Path, imported: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "peerlane.workers.cli", "--version"],
        cwd=hostile,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode != 0
    assert "HOSTILE" in ran.stderr
    assert imported.exists()


def test_a_gateway_serves_from_there(
    hostile: Path, imported: Path, tmp_path: Path, redis_server: RedisServer, settings: MakeSettings
) -> None:
    name, log = new_name(), tmp_path / "log"
    command = [PEERLANE, "gateway", "run", name, "--dataplane", "memory", "--private-key-file", tmp_path / "key"]
    environment = clean_environment() | {"PEERLANE_REDIS_URL": redis_server.url, "PEERLANE_OBSERVE_EVERY": "1"}
    app = PeerlaneApp(settings())

    def up() -> bool:
        assert process.poll() is None, log.read_text()
        return lanes_of(app).look(name).state == "active" and read_gateway(app, name).observed

    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=hostile, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        eventually(up, "a served lane and an observer")
        assert Gateway(name, app=app).create_peer(some_key(), timeout=30).outcome == "created"
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        close(app)
    assert not imported.exists(), imported.read_text()
    assert "HOSTILE" not in log.read_text()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), marks=pytest.mark.slow("starts a whole demo; the one without Flower is quick enough")),
        ("--no-flower",),
    ],
)
def test_the_demo_runs_to_its_end_there(words: tuple[str, ...], hostile: Path, imported: Path) -> None:
    ran = subprocess.run(
        [PEERLANE, "demo", "--peers", "20", "--gateways", "1", "--json", *words],
        cwd=hostile,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout)["swept"]["count"] > 0
    assert not imported.exists(), imported.read_text()


def test_every_child_is_started_so_that_it_imports_nothing_of_its_directory() -> None:
    sources = [path for folder in ("config", "tasks", "workers") for path in (ROOT / folder).rglob("*.py")]
    starts = [
        f"{path.relative_to(ROOT)}: {words}"
        for path in sources
        for words in re.findall(r"sys\.executable, ?([^\]]*)", path.read_text())
    ]
    assert starts
    assert [start for start in starts if '.py: "-P", ' not in start] == []
