"""The peers of a table that the device does not hold yet, because its writer serves while it still adds them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peerlane.tasks.wire.stored_peer import raw_key, text_key
from peerlane.workers.dataplane import Change, SetPeer


class Coming:
    """Keys of peers that are still to be added, in an order. Belongs to the writer's thread; its length to anybody."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """``keys`` are those of 32 bytes; what comes first is added first."""
        self._order = list(reversed(keys))
        self._left = set(keys)

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, public_key: str) -> bool:
        return bool(self._left) and raw_key(public_key) in self._left

    def pop(self, count: int) -> list[str]:
        """The next keys. They are still coming until ``made`` or ``discard`` says otherwise."""
        found: list[str] = []
        while self._order and len(found) < count:
            raw = self._order.pop()
            if raw in self._left:
                found.append(text_key(raw))
        return found

    def discard(self, public_key: str) -> None:
        """It is on the device now, or will never be."""
        if self._left and (raw := raw_key(public_key)) is not None:
            self._left.discard(raw)
            if not self._left:
                self._order.clear()

    def made(self, changes: Iterable[Change]) -> None:
        """These changes were made on the device."""
        if self._left:
            for change in changes:
                if isinstance(change, SetPeer):
                    self.discard(change.public_key)
