"""What is installed is this project and no more, and its parts import one another in one direction only."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: The folders at the root that peerlane/ links to.
FOLDERS = ("config", "tasks", "workers")

#: Imports every module of peerlane and prints each file that is loaded under two names.
TWICE = """
import importlib, os, pkgutil, sys
import peerlane
for module in pkgutil.walk_packages(peerlane.__path__, "peerlane."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
files = {}
for name, module in list(sys.modules.items()):
    if path := getattr(module, "__file__", None):
        files.setdefault(os.path.realpath(path), set()).add(name)
print(sum(name.startswith("peerlane.") for name in sys.modules))
print(sorted(names for names in files.values() if len(names) > 1 and any("peerlane" in n for n in names)))
print(sorted(set(sys.modules) & {"config", "tasks", "workers"}))
"""

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


def sources() -> set[str]:
    """Every file of the package, named as in the wheel."""
    return {
        f"peerlane/{path.relative_to(ROOT)}" if folder in FOLDERS else str(path.relative_to(ROOT))
        for folder in (*FOLDERS, "peerlane")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.parent.is_symlink()
    }


def build(target: str, directory: Path, source: Path = ROOT) -> Path:
    """A wheel or an sdist, built as a front end builds it."""
    built = run(sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", directory, cwd=source)
    assert built.returncode == 0, built.stderr
    (path,) = directory.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as opened:
        yield opened


def test_the_package_that_imports_is_this_projects(tmp_path: Path) -> None:
    printed = run(sys.executable, "-I", "-c", "import peerlane; print(peerlane.__file__)", cwd=tmp_path)
    assert printed.stdout.strip() == str(ROOT / "peerlane" / "__init__.py"), printed.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_at_the_root_is_linked_into_peerlane(folder: str) -> None:
    link = ROOT / "peerlane" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..", folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_editable_install_offers_no_folder_under_its_bare_name(folder: str, tmp_path: Path) -> None:
    imported = run(sys.executable, "-I", "-c", f"import {folder}", cwd=tmp_path)
    assert "ModuleNotFoundError" in imported.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_bare_import_at_the_root_is_refused_with_a_sentence(folder: str) -> None:
    imported = run(sys.executable, "-c", f"import {folder}", cwd=ROOT)
    assert f"import peerlane.{folder}: {folder} would be a second copy of it" in imported.stderr


@pytest.mark.parametrize("place", ["elsewhere", "root"])
def test_no_file_is_loaded_under_two_names(place: str, tmp_path: Path) -> None:
    loaded = run(sys.executable, "-c", TWICE, cwd=ROOT if place == "root" else tmp_path)
    count, twice, bare = loaded.stdout.splitlines()
    assert int(count) > 100, loaded.stderr
    assert (twice, bare) == ("[]", "[]")


def test_the_public_names_are_all_there_and_nothing_is_loaded_for_them_before_use(tmp_path: Path) -> None:
    program = """
import sys, peerlane
print(sorted(name for name in sys.modules if name.startswith("peerlane.")), "celery" in sys.modules)
print([name for name in peerlane.__all__ if getattr(peerlane, name).__module__.partition(".")[0] != "peerlane"])
print(hasattr(peerlane, "no_such_name"), set(peerlane.__all__) <= set(dir(peerlane)))
"""
    asked = run(sys.executable, "-c", program, cwd=tmp_path)
    named, others, shown = asked.stdout.splitlines()
    assert (named, shown) == ("[] False", "False True"), asked.stderr
    # Celery's proxies for tasks, and a union of two of our classes.
    assert others == str(["PeerAnswer", "create_peer", "create_peers", "delete_peer", "delete_peers"])


def test_the_wheel_holds_peerlane_alone(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"peerlane"}


def test_the_wheel_holds_every_file_once_scripts_for_redis_and_the_mark_of_types_included(
    wheel: zipfile.ZipFile,
) -> None:
    expected = sources()
    assert sorted(name for name in wheel.namelist() if ".dist-info/" not in name) == sorted(expected)
    assert any(name.endswith(".lua") for name in expected)
    assert "peerlane/py.typed" in expected


def test_an_sdist_builds_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Hatchling skips a folder that it has met under another path (pypa/hatch#1197): only-include prevents that."""
    with tarfile.open(build("sdist", tmp_path / "sdist")) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", tmp_path / "again", source)) as again:
        assert sorted(again.namelist()) == sorted(wheel.namelist())
        for name in wheel.namelist():
            assert again.read(name) == wheel.read(name), name


def test_the_wheel_brings_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert "peerlane = peerlane.workers.cli.main:main" in wheel.read(entry_points).decode()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_what_an_api_host_imports_needs_no_pyroute2(tmp_path: Path) -> None:
    imported = run(sys.executable, "-c", IMPORT_WITHOUT_PYROUTE2, "peerlane.config", "peerlane.tasks", cwd=tmp_path)
    assert imported.returncode == 0, imported.stderr
    assert {"peerlane.config.celery.app", "peerlane.tasks.errors", "peerlane.tasks.cli.program"} <= set(
        imported.stdout.split()
    )


def test_the_blocker_of_that_test_does_block(tmp_path: Path) -> None:
    imported = run(sys.executable, "-c", IMPORT_WITHOUT_PYROUTE2, "pyroute2", cwd=tmp_path)
    assert imported.returncode != 0
    assert "this is an API host" in imported.stderr


def lint_imports(project: Path) -> subprocess.CompletedProcess[str]:
    return run(Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo", cwd=project)


def test_the_import_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


#: Imports against a contract: the module, what it imports, and words of the contract's name.
VIOLATIONS = [
    ("config.names", "peerlane.tasks.errors", "never back"),
    ("tasks.errors", "peerlane.workers.dataplane", "never back"),
    ("tasks.errors", "pyroute2", "never reach pyroute2"),
    ("workers.peers.plan", "pyroute2", "only peerlane.workers.dataplane.kernel"),
    ("tasks.wgfile.export", "peerlane.tasks.client.gateway", "inside tasks"),
    ("tasks.status.rates", "peerlane.tasks.admin.maintenance", "inside tasks"),
    ("tasks.wire.model", "peerlane.tasks.lane.tasks", "inside tasks"),
    ("tasks.client.gateway", "rich", "API hosts load no terminal"),
    ("workers.upkeep.sweeper", "peerlane.workers.writer.writer", "inside workers"),
    ("workers.upkeep.reconciler", "peerlane.workers.start.recovery", "a writer's start"),
    ("workers.store.store", "kombu", "Celery stops at the lane"),
    ("workers.peers.plan", "redis", "pure rooms do no I/O"),
]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each contract in a project with all of these imports."""
    project = tmp_path_factory.mktemp("violations")
    for folder in (*FOLDERS, "peerlane"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, project / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", project)
    for module, imported, _ in VIOLATIONS:
        with (project / module.replace(".", "/")).with_suffix(".py").open("a") as source:
            source.write(f"\nimport {imported}\n")
    broken = lint_imports(project)
    assert broken.returncode == 1, broken.stdout
    _, *sections = re.split(r"^(.+)\n-{3,}$", broken.stdout, flags=re.MULTILINE)
    return dict(zip(sections[::2], sections[1::2], strict=True))


@pytest.mark.parametrize(("module", "imported", "contract"), VIOLATIONS)
def test_an_import_against_a_contract_is_caught(
    module: str, imported: str, contract: str, complaints: dict[str, str]
) -> None:
    (complaint,) = [text for name, text in complaints.items() if contract in name]
    assert re.search(rf"- *peerlane\.{module} -> {imported} \(l\.", " ".join(complaint.split())), complaint
