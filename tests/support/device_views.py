"""A device as an observer sees it, without a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.dataplane import DeviceIdentity, DevicePeer


@dataclass
class EmptyDevice:
    """A device that is up and has the pools' routes, and no peers."""

    pools: tuple[Prefix, ...]
    public_key: str
    #: Whether the last reading showed every peer.
    complete: bool = True

    def peers(self) -> Iterator[DevicePeer]:
        return iter(())

    def routes(self) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        return frozenset(), frozenset(self.pools)

    def up(self) -> bool:
        return True

    def identity(self) -> DeviceIdentity:
        return DeviceIdentity(self.public_key, 51820, 1420)

    def index(self) -> int:
        return 1

    def close(self) -> None:
        """Nothing is held."""
