"""What the command line loads: its version and its help need no Celery, no Redis, no settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from peerlane.workers.cli import gateway as gateway_commands
from peerlane.workers.cli.main import ON_USE, main

HEAVY = {"celery", "kombu", "redis", "pydantic", "pydantic_settings", "cryptography", "segno", "pyroute2"}

#: Runs the command line with the arguments given, then prints which modules were loaded.
LOADED = """
import sys
from peerlane.workers.cli.main import main
main(sys.argv[1:], prog_name="peerlane", standalone_mode=False)
print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def loaded(directory: Path, *arguments: str) -> tuple[str, set[str]]:
    command = [sys.executable, "-c", LOADED, *arguments]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=True)
    said, _, modules = ended.stdout.partition("LOADED ")
    return said, set(modules.split())


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["-h"]])
def test_version_and_help_load_neither_celery_nor_redis(arguments: list[str], tmp_path: Path) -> None:
    said, modules = loaded(tmp_path, *arguments)
    assert said
    assert not modules & HEAVY


def test_a_command_that_needs_them_does_load_them(tmp_path: Path) -> None:
    said, modules = loaded(tmp_path, "peer", "--help")
    assert "Peers: create, delete, show, list." in said
    assert {"celery", "redis"} <= modules


@pytest.mark.parametrize("name", ON_USE)
def test_a_commands_line_in_the_help_is_its_own(name: str) -> None:
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None
    assert ON_USE[name][1] == command.get_short_help_str(limit=200)


@pytest.mark.parametrize("name", gateway_commands.ON_USE)
def test_a_gateway_commands_line_in_the_help_is_its_own(name: str) -> None:
    group = gateway_commands.gateway
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.name == name
    assert gateway_commands.ON_USE[name][1] == command.get_short_help_str(limit=200)


def test_a_gateway_that_starts_loads_no_other_command_and_no_terminal(tmp_path: Path) -> None:
    _, modules = loaded(tmp_path, "gateway", "run", "--help")
    assert not modules & {"celery", "kombu", "redis", "rich", "cryptography"}


def test_the_help_lists_every_command() -> None:
    listed = main.get_help(click.Context(main, info_name="peerlane"))
    assert all(f"\n  {name} " in listed for name in (*ON_USE, "demo"))
