"""Reading counters from the real device: what the observer needs, and nothing that could change anything."""

from __future__ import annotations

from collections.abc import Iterator

from workers.dataplane import wire
from workers.dataplane.channel import NETLINK_GENERIC, Channel
from workers.dataplane.counters import PeerCounters
from workers.dataplane.netlink import GENL_ID_CTRL, Interrupted, family_id, family_request
from workers.dataplane.refusals import translated


class KernelCounters:
    """Counters of a device by name, on a socket of its own. Needs CAP_NET_ADMIN, as every WireGuard dump does."""

    def __init__(self, interface: str, *, timeout: float = 10.0) -> None:
        self._interface = interface
        self.complete = False
        self._generic = Channel(NETLINK_GENERIC, timeout=timeout)

    def counters(self) -> Iterator[list[PeerCounters]]:
        """See ``CounterSource.counters``: one batch per datagram of the dump, at most some 200 peers."""
        with translated(f"read the counters of {self._interface}"):
            family = family_id(self._generic.ask(GENL_ID_CTRL, family_request(wire.FAMILY)))
            self.complete = False
            try:
                for payload in self._generic.dump(family, family, wire.encode_get(self._interface)):
                    yield wire.read_counters(payload)
            except Interrupted:
                return
            self.complete = True

    def close(self) -> None:
        """Let go of the socket."""
        self._generic.close()
