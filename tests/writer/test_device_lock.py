"""A device's lock names its holder, however often it is asked."""

from __future__ import annotations

import os
import re

import pytest

from peerlane.tasks.errors import LaneHeld
from peerlane.workers.host.lock import WriterLock


def test_the_holder_is_named_however_many_have_asked() -> None:
    device = f"test{os.getpid()}"
    with WriterLock(device) as lock:
        for _ in range(20):  # more than the socket's queue holds
            with pytest.raises(LaneHeld, match=re.escape(f"already has a writer here: process {os.getpid()}")):
                WriterLock(device).acquire()
            lock.heed()
    with WriterLock(device):
        pass  # released


def test_nobody_has_asked() -> None:
    lock = WriterLock(f"test{os.getpid()}")
    lock.heed()
    with lock:
        lock.heed()
