"""A directory of settings and keys that root made, met by another user: what is not there stops nobody."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peerlane.config import settings
from peerlane.config.settings import BadSettings, read
from peerlane.config.settings_file import VARIABLE
from peerlane.workers.dataplane import keyfile

NOBODY = 65534


@contextmanager
def another_user() -> Generator[None]:
    """As root: somebody else for a while. Others need not be: what is closed to all is closed to them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def etc() -> Iterator[Path]:
    """A directory like /etc/peerlane that everybody can reach: those of pytest are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="peerlane-etc-"))
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


@pytest.fixture
def default(etc: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the default file would be."""
    path = etc / "peerlane.toml"
    monkeypatch.setattr(settings, "DEFAULT_SETTINGS_FILE", str(path))
    return path


def close(path: Path) -> None:
    path.chmod(0o000)


@pytest.mark.parametrize("there", [False, True])
def test_a_default_file_in_a_closed_directory_is_none(there: bool, default: Path) -> None:  # noqa: FBT001 - a case
    if there:
        default.write_text("timeout = 7\n")
    close(default.parent)
    with another_user():
        with pytest.raises(PermissionError):
            default.stat()
        assert read().timeout == 5


def test_one_that_was_named_has_to_be_readable(default: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default.write_text("timeout = 7\n")
    monkeypatch.setenv(VARIABLE, str(default))
    assert read().timeout == 7
    close(default.parent)
    with another_user(), pytest.raises(BadSettings, match="cannot be read: Permission denied"):
        read()


def test_a_default_file_that_is_seen_and_cannot_be_read_is_not_passed_over(default: Path) -> None:
    # A gateway would start with other pools than its operator wrote.
    default.write_text("timeout = 7\n")
    close(default)
    with another_user(), pytest.raises(BadSettings, match="Permission denied; PEERLANE_SETTINGS names another"):
        read()


def test_after_a_start_that_made_the_key_others_read_the_settings_beside_it_and_not_the_key(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = etc / "peerlane" / "wg0.key"
    before = os.umask(0o077)  # as systemd's UMask= or root's shell may have it
    try:
        keyfile.load_or_make(key)
    finally:
        os.umask(before)
    (key.parent / "peerlane.toml").write_text("timeout = 7\n")
    monkeypatch.setattr(settings, "DEFAULT_SETTINGS_FILE", str(key.parent / "peerlane.toml"))
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with another_user():
        assert read().timeout == 7
        if os.geteuid() == NOBODY:
            with pytest.raises(PermissionError):
                key.read_bytes()
