"""Calls that wait for their outcome, for tests of what happens to them meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from gateways import GatewayProcess
from keys import some_key
from waiting import PATIENCE, eventually

from peerlane import Gateway
from peerlane.tasks.wire.model import PeerResult


@contextmanager
def create_in_lane(
    site: GatewayProcess, api: Gateway, pushes: list[str], timeout: float = PATIENCE
) -> Generator[Future[PeerResult]]:
    """A create that waits in the lane of a writer that takes nothing. ``pushes``: the fixture of that name."""
    site.hold()
    pushes.clear()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(api.create_peer, some_key(), timeout=timeout)
        eventually(lambda: pushes, "the request in the lane")
        yield waiting
