"""Detects jumps of Redis' clock against this host's monotonic one. Pure; ``activity_tracker`` reads them.

Expiry is reckoned on Redis' clock. Should that jump by an hour, every peer with a TTL would seem to be out of time.
"""

from __future__ import annotations

#: Seconds by which the two may have drifted apart between two looks.
TOLERANCE = 30.0


class ClockWatch:
    """Two clocks, looked at now and again: the server's (seconds since 1970), and one that nobody sets."""

    def __init__(self, offset: float | None = None) -> None:
        """``offset`` is the server's lead over the steady clock as it was before, where that is known."""
        #: The lead while the clocks agreed; taken anew at each look that agrees, as clocks are slewed.
        self.offset = offset
        #: Seconds that the server's clock is ahead of where it should be; None while they agree.
        self.jumped: float | None = None

    def look(self, server: float, steady: float) -> float | None:
        """Both clocks read at one moment; by how much the server's has jumped, None if it has not."""
        offset = server - steady
        if self.offset is not None and abs(offset - self.offset) > TOLERANCE:
            self.jumped = offset - self.offset
        else:
            self.offset, self.jumped = offset, None
        return self.jumped

    def accept(self, server: float, steady: float) -> None:
        """A person says that the server's clock is right as it is."""
        self.offset, self.jumped = server - steady, None
