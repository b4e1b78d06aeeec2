"""The private key file, where the contract suite does not reach."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Generator
from pathlib import Path

import pytest

from peerlane.tasks.wire.stored_peer import text_key
from peerlane.workers.dataplane import keyfile


@pytest.fixture
def careless_umask() -> Generator[None]:
    """Files are open to everybody unless somebody takes care."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("careless_umask")
def test_the_file_is_closed_to_others_and_they_cannot_change_its_new_directory(tmp_path: Path) -> None:
    path = tmp_path / "newer" / "new" / "private.key"
    keyfile.load_or_make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o755


def test_processes_that_race_to_make_it_all_get_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "private.key"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        loaded = set(pool.map(keyfile.load_or_make, [path] * 16, chunksize=1))
    assert loaded == {keyfile.load_or_make(path)}
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_made_here_is_one_that_wireguard_would_make(tmp_path: Path) -> None:
    private = keyfile.load_or_make(tmp_path / "private.key")
    assert keyfile.clamp(private) == private
    assert (tmp_path / "private.key").read_text() == text_key(private) + "\n"


@pytest.mark.parametrize("private", [bytes(range(32)), b"\xff" * 32, b"\x01" + bytes(31)], ids=["mixed", "ones", "low"])
def test_clamping_changes_the_private_key_but_not_the_public_one(private: bytes) -> None:
    assert keyfile.clamp(private) != private
    assert keyfile.public_key(keyfile.clamp(private)) == keyfile.public_key(private)
