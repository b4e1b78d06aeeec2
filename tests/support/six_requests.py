"""One request of each outcome, for tests of what a writer counts."""

from __future__ import annotations

import pytest
from keys import some_key

from peerlane import Gateway
from peerlane.tasks.errors import Conflict


def six_requests(peers: Gateway) -> None:
    """Ask for two peers that are created, one that exists, one that conflicts, one deleted and one absent."""
    first, second = some_key(), some_key()
    for key in (first, second, second):
        peers.create_peer(key)
    peers.delete_peer(first)
    peers.delete_peer(first)
    with pytest.raises(Conflict):
        peers.create_peer(second, keepalive=25)
