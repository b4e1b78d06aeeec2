"""A proxy between a process and Redis that fails in the ways networks do, while a test turns the knobs.

It listens on a TCP port of its own and leads to a unix socket or another TCP port. It runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from typing import Self

_CHUNK = 16_384
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset instead of a farewell


class FaultProxy:
    """Knobs may be turned from any thread, at any time; they hold for what passes afterwards."""

    def __init__(self, upstream: str | tuple[str, int], host: str = "127.0.0.1", port: int = 0) -> None:
        """``upstream`` is a socket's path, or (host, port)."""
        self.upstream = upstream
        self.host, self.port = host, port
        #: Seconds that each piece is held back, each way; plus up to ``jitter`` more.
        self.latency = 0.0
        self.jitter = 0.0
        #: Bytes a second, each way; 0 for no limit.
        self.bandwidth = 0
        #: Connections accepted so far.
        self.accepted = 0
        self._refusing = False
        self._swallowing = False
        self._doomed_request: tuple[bytes, int] | None = None
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="faultproxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        """For Redis clients."""
        return f"redis://{self.host}:{self.port}/0"

    def cut(self) -> None:
        """Reset every connection, and refuse new ones until ``mend``."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Reset every connection; new ones are welcome."""
        self._loop.call_soon_threadsafe(self._reset_all)

    def half_open(self) -> None:
        """Swallow whatever comes, both ways. What was connected meanwhile stays dead after ``mend``."""
        self._swallowing = True

    def silence(self) -> None:
        """Swallow whatever comes by connections that are there, for good; new ones are sound."""
        for link in list(self._links):
            link.dead = True

    def reset_mid_reply(self, after: int = 0, *, to: bytes = b"") -> None:
        """Reset the next request's connection (one that holds ``to``) once ``after`` bytes of its reply have passed."""
        self._doomed_request = (to, after)

    def mend(self) -> None:
        """All knobs back; connections that were swallowed from are reset only by those who hold them."""
        self.latency = self.jitter = 0.0
        self.bandwidth = 0
        self._refusing = self._swallowing = False
        self._doomed_request = None

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._reset_all()
        others = asyncio.all_tasks() - {task for task in [asyncio.current_task()] if task}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link([writer])
        self._links.add(link)
        try:
            if self._refusing:
                return
            if isinstance(self.upstream, str):
                far_reader, far_writer = await asyncio.open_unix_connection(self.upstream)
            else:
                far_reader, far_writer = await asyncio.open_connection(*self.upstream)
            link.ends.append(far_writer)
            there = asyncio.ensure_future(self._pass(link, reader, far_writer, replies=False))
            back = asyncio.ensure_future(self._pass(link, far_reader, writer, replies=True))
            link.tasks = [asyncio.current_task(), there, back]
            _, left = await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
        except (OSError, asyncio.CancelledError):
            pass  # the far side is not there, or this proxy ends: the near side learns it by the reset
        finally:
            self._links.discard(link)
            link.reset()

    async def _pass(
        self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(_CHUNK):
                link.dead = link.dead or self._swallowing
                if link.dead:
                    continue
                if self.latency or self.jitter:
                    await asyncio.sleep(self.latency + random.uniform(0, self.jitter))
                if self.bandwidth:
                    await asyncio.sleep(len(piece) / self.bandwidth)
                if replies and link.reset_after is not None:
                    sink.write(piece[: link.reset_after])
                    link.reset()
                    return
                if not replies and self._doomed_request is not None and self._doomed_request[0] in piece:
                    link.reset_after = self._doomed_request[1]
                    self._doomed_request = None
                sink.write(piece)
                await sink.drain()
            if link.dead:  # its end is swallowed like all else
                await asyncio.Event().wait()


class _Link:
    """The two ends of one connection."""

    def __init__(self, ends: list[asyncio.StreamWriter]) -> None:
        self.ends = ends
        self.dead = False
        #: PeerState here: the loop itself would let the garbage collector take tasks that wait for ever.
        self.tasks: list[asyncio.Task[None] | None] = []
        #: Bytes of the next reply after which the connection is reset.
        self.reset_after: int | None = None

    def reset(self) -> None:
        """Close both ends with a reset; what was still to be sent is not."""
        for end in self.ends:
            raw = end.get_extra_info("socket")
            with contextlib.suppress(OSError, ValueError):
                if raw is not None and raw.family != socket.AF_UNIX:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()
