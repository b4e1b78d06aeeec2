"""What is installed is this project and no more, and its parts import one another in one direction only."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("config", "tasks", "workers")

#: Imports every module of the packages named as arguments, where nothing can import pyroute2.
IMPORT_WITHOUT_PYROUTE2 = """
import importlib, pkgutil, sys

class NoPyroute2:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pyroute2":
            raise ImportError(f"{name} is not here: this is an API host")

sys.meta_path.insert(0, NoPyroute2())
for package in map(importlib.import_module, sys.argv[1:]):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
    print(package.__name__)
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run to the end; what it said goes into the test's report if an assertion on it fails."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def sources(package: str) -> set[str]:
    """Every file of a package, relative to the repository."""
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built as `pip wheel` builds it."""
    target = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_that_imports_is_this_projects(package: str, tmp_path: Path) -> None:
    found = run(sys.executable, "-I", "-c", f"import {package}; print({package}.__file__)", cwd=tmp_path)
    assert found.stdout.strip() == str(ROOT / package / "__init__.py"), found.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_installs_a_package_of_this_name(package: str) -> None:
    owners = importlib.metadata.packages_distributions().get(package, [])
    assert set(owners) <= {"peerlane"}


def test_the_wheel_holds_exactly_the_three_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_the_wheel_holds_every_file_of_the_packages_scripts_for_redis_included(wheel: zipfile.ZipFile) -> None:
    expected = {path for package in PACKAGES for path in sources(package)}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    assert any(name.endswith(".lua") for name in expected)


def test_the_wheel_brings_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert "peerlane = workers.cli.main:main" in wheel.read(entry_points).decode()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_what_an_api_host_imports_needs_no_pyroute2(tmp_path: Path) -> None:
    imported = run(sys.executable, "-c", IMPORT_WITHOUT_PYROUTE2, "config", "tasks", cwd=tmp_path)
    assert imported.returncode == 0, imported.stderr
    assert {"config", "config.celery_app", "tasks", "tasks.errors"} <= set(imported.stdout.split())


def test_the_blocker_of_that_test_does_block(tmp_path: Path) -> None:
    imported = run(sys.executable, "-c", IMPORT_WITHOUT_PYROUTE2, "pyroute2", cwd=tmp_path)
    assert imported.returncode != 0
    assert "this is an API host" in imported.stderr


def lint_imports(project: Path) -> subprocess.CompletedProcess[str]:
    return run(Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo", cwd=project)


def test_the_import_contracts_hold() -> None:
    held = lint_imports(ROOT)
    assert held.returncode == 0, held.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("config/names.py", "import tasks.errors", "never back"),
        ("tasks/errors.py", "import workers.dataplane", "never back"),
        ("tasks/errors.py", "import pyroute2", "never reach pyroute2"),
        ("workers/peers/plan.py", "import pyroute2", "only workers.dataplane.kernel"),
    ],
)
def test_an_import_against_a_contract_is_caught(module: str, line: str, contract: str, tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as source:
        source.write(f"\n{line}\n")

    broken = lint_imports(tmp_path)

    assert broken.returncode == 1, broken.stdout
    verdicts = dict(re.findall(r"^(.*) (KEPT|BROKEN)", broken.stdout, flags=re.MULTILINE))
    assert [verdict for name, verdict in verdicts.items() if contract in name] == ["BROKEN"], broken.stdout
