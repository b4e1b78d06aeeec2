"""The peers that a writer still has to add to the device after a start, while it serves the lane. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peerlane.tasks.wire.stored_peer import raw_key, text_key
from peerlane.workers.dataplane import Change, SetPeer


class Coming:
    """Keys of peers to add, in order. Belongs to the writer's thread; any thread may read its length."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """``keys`` are those of 32 bytes; what comes first is added first."""
        self._order = list(reversed(keys))
        self._left = set(keys)

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, public_key: str) -> bool:
        return bool(self._left) and raw_key(public_key) in self._left

    def pop(self, count: int) -> list[str]:
        """The next keys. They stay in the set until ``made`` or ``discard`` removes them."""
        found: list[str] = []
        while self._order and len(found) < count:
            raw = self._order.pop()
            if raw in self._left:
                found.append(text_key(raw))
        return found

    def discard(self, public_key: str) -> None:
        """Remove a peer that is on the device now, or will never be."""
        if self._left and (raw := raw_key(public_key)) is not None:
            self._left.discard(raw)
            if not self._left:
                self._order.clear()

    def made(self, changes: Iterable[Change]) -> None:
        """Remove the peers that these changes have set on the device."""
        if self._left:
            for change in changes:
                if isinstance(change, SetPeer):
                    self.discard(change.public_key)
