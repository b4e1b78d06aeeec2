"""Decides when a starting writer may take over from the one that served the gateway before."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from peerlane.tasks.admission.lane_state import LIVE_FOR_MS, number
from peerlane.tasks.errors import LaneHeld
from peerlane.workers.host.lock import namespace
from peerlane.workers.store.store import Store


def holder(device: str) -> dict[str, str | int]:
    """The fields that name this writer to a second one; its lock is named after ``device``."""
    return {
        "holder_host": socket.gethostname(),
        "holder_pid": os.getpid(),
        "holder_lock": f"{namespace()}/{device}",
    }


def elsewhere(facts: Mapping[str, str], device: str, now_ms: int) -> str | None:
    """The host of the live writer, if it runs on another device than this one; else None.

    ``facts`` are the gateway's holder_host, holder_lock and heartbeat.
    """
    lock, here = facts.get("holder_lock", ""), namespace()
    live = now_ms - number(facts.get("heartbeat", "0")) < LIVE_FOR_MS
    if not live or not lock or lock == f"{here}/{device}" or "unknown" in (lock.split("/")[0], here.split("/")[0]):
        return None
    return facts.get("holder_host") or "another host"


def await_predecessor(store: Store, device: str) -> None:
    """Wait until no other writer serves this gateway.

    Where the last one held the lock that this one holds now, it is gone. Elsewhere (another host, namespace or
    device) only the heartbeat tells: one that goes on is a live writer; one that stopped without a word is waited out.

    Raises:
        LaneHeld: another writer lives; says where.
    """
    facts = store.facts()
    beat = facts.get("heartbeat", "0")
    had_this_lock = facts.get("holder_lock") == f"{namespace()}/{device}"
    deadline = time.monotonic() + LIVE_FOR_MS / 1000 + 1
    # Redis' clock may have been set back since: then the last heartbeat is of the future, and waiting is enough.
    while not had_this_lock and store.clock.now_ms() - number(beat) < LIVE_FOR_MS and time.monotonic() < deadline:
        time.sleep(0.2)
        facts = store.facts()
        if facts.get("heartbeat") != beat:
            raise LaneHeld(
                f"the gateway {store.gateway} has a live writer: process {facts.get('holder_pid')} on "
                f"{facts.get('holder_host')}"
            )
