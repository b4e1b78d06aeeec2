"""Per-peer counters that the observer reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class PeerCounters(NamedTuple):
    """One peer's counters. They start again from 0 when a peer is removed and added."""

    public_key: str
    #: Seconds since 1970 by the gateway's clock, 0 for never.
    latest_handshake: float
    rx_bytes: int
    tx_bytes: int
    endpoint: tuple[str, int] | None


class CounterSource(Protocol):
    """The source of counters: ``KernelCounters`` for a device, a ``MemoryDataPlane`` for itself."""

    @property
    def complete(self) -> bool:
        """Whether the last finished reading certainly missed no peer.

        False where peers were added or removed meanwhile: what was yielded is true, but who did not appear may
        still be there (drivers/net/wireguard/netlink.c, wg_get_device_dump, ends at a peer removed under it).
        """
        ...

    def counters(self) -> Iterator[list[PeerCounters]]:
        """All peers' counters in batches of a few hundred, with constant memory. Each peer comes once.

        Raises:
            KernelError: the device cannot be asked.
        """
        ...

    def close(self) -> None:
        """Close the sockets."""
        ...
