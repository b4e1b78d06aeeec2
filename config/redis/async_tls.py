"""TLS connections of asyncio programs, which close without waiting for the other side."""

from __future__ import annotations

from typing import Any

from redis.asyncio.connection import SSLConnection


class AbruptTLS(SSLConnection):
    """Closes a TLS connection at once; asyncio would wait half a minute for a server that does not answer."""

    async def disconnect(self, *arguments: Any, **named: Any) -> None:
        """Close it."""
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*arguments, **named)
