"""Reads a file that holds a secret: refused if others could read it, or if it is anything but a regular file."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class NotPrivate(ValueError):
    """The file is not safe to use; the message says why and never shows its content."""


def read_private(path: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a file of mode 0600 that belongs to this user or to root.

    Raises:
        OSError: it cannot be read.
        NotPrivate: it is not such a file.
    """
    # O_NONBLOCK: a FIFO by that name must not hang the start.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise NotPrivate("it is not a regular file")
        if status.st_mode & 0o077:
            raise NotPrivate(
                f"others may use it (mode {stat.S_IMODE(status.st_mode):04o}); chmod 600 it,"
                " or make a new key if somebody may have read it"
            )
        if status.st_uid not in (0, os.geteuid()):
            raise NotPrivate(f"it belongs to another user (uid {status.st_uid})")
        return file.read(limit)
