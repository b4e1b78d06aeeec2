"""What the observer reads of each peer, often and for all peers: five fields and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class PeerCounters(NamedTuple):
    """One peer's activity. Counters start again from 0 when a peer is removed and added."""

    public_key: str
    #: Seconds since 1970 by the gateway's clock, 0 for never.
    latest_handshake: float
    rx_bytes: int
    tx_bytes: int
    endpoint: tuple[str, int] | None


class CounterSource(Protocol):
    """Where counters come from: ``KernelCounters`` for a device, a ``MemoryDataPlane`` for itself."""

    def counters(self) -> Iterator[list[PeerCounters]]:
        """All peers' counters in batches of a few hundred, memory flat. Each peer comes once.

        Raises:
            KernelError: the device cannot be asked; or, at the end, peers were removed or changed while it was
                read, so that some may be missing. What was yielded is true.
        """
        ...
