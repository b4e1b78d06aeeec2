"""One netlink socket for requests and answers, with sequence numbers and timeouts.

A channel belongs to one thread. If a request is not fully answered (a timeout, ENOBUFS, malformed data, a signal), the
socket is closed; the next request opens a new one, so a late answer is never taken for another request's.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Self, TypeVar

from peerlane.workers.dataplane.netlink.framing import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    DumpReader,
    Interrupted,
    KernelRefused,
    Malformed,
    Payload,
    frame,
    messages,
    refusal,
)

NETLINK_ROUTE = 0
NETLINK_GENERIC = 16

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12

#: The kernel puts at most 32 KiB in one datagram of a dump (net/netlink/af_netlink.c, netlink_recvmsg).
_RECEIVE = 64 * 1024

#: Whole dumps tried before giving up on one that keeps being interrupted, and the first pause in between.
_DUMP_TRIES = 6
_DUMP_PAUSE = 0.01

_T = TypeVar("_T")


def uninterrupted(read: Callable[[], _T]) -> _T:
    """Call ``read`` again while changes interrupt its dump; returns its result.

    Raises:
        Interrupted: every time, for about a third of a second.
    """
    pause = _DUMP_PAUSE
    for _ in range(_DUMP_TRIES - 1):
        try:
            return read()
        except Interrupted:
            time.sleep(pause)
            pause *= 2
    return read()


class Channel:
    """A socket of one netlink protocol, ``NETLINK_ROUTE`` or ``NETLINK_GENERIC``.

    Every method raises KernelRefused for the kernel's own answer, TimeoutError when none came in time, another
    OSError where the socket failed, Malformed where the answer makes no sense.
    """

    def __init__(self, protocol: int, *, timeout: float = 10.0) -> None:
        self._protocol = protocol
        self._timeout = timeout
        self._open: socket.socket | None = None
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. The next request opens a new one."""
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def socket(self) -> socket.socket:
        """The socket; opened if there is none."""
        if self._open is None:
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._protocol)
            try:
                # Errors without the request quoted (up to 64 KiB of it), and with the kernel's sentence.
                made.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
                made.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
                # The kernel then filters dumps of routes by what the request says.
                made.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
                # Not settimeout(): that polls before every call.
                seconds = int(self._timeout)
                limit = struct.pack("@ll", seconds, int((self._timeout - seconds) * 1_000_000))
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
                made.bind((0, 0))
            except BaseException:
                made.close()
                raise
            self._open = made
        return self._open

    def execute(
        self, kind: int, flags: int, payloads: Sequence[bytes], forgive: frozenset[int] = frozenset()
    ) -> list[int]:
        """Send all ``payloads`` as messages of ``kind`` at once, and wait until the kernel has acknowledged all.

        Returns the positions that failed with an errno in ``forgive``. Raises the first other failure, after all
        were tried. Keep to about a hundred: the answers must fit the socket's buffer (256 errors overflow it).
        """
        if not payloads:
            return []
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(payloads)
        request = flags | NLM_F_REQUEST
        # The kernel answers in order and always answers an error, so the last message's answer ends the exchange.
        parts = [frame(kind, request, first + n, payload) for n, payload in enumerate(payloads[:-1])]
        parts.append(frame(kind, request | NLM_F_ACK, last, payloads[-1]))
        forgiven: list[int] = []
        failure: KernelRefused | None = None
        try:
            self._send(b"".join(parts))
            answered = False
            while not answered:
                datagram = self._receive()
                for reply, reply_flags, sequence, at, end in messages(datagram):
                    if reply != NLMSG_ERROR or not first <= sequence <= last:
                        continue
                    error = refusal(datagram, reply_flags, at, end)
                    if error is not None and error.errno in forgive:
                        forgiven.append(sequence - first)
                    elif error is not None and failure is None:
                        failure = error
                    answered = answered or sequence == last
        except BaseException:
            self.close()
            raise
        if failure is not None:
            raise failure
        return forgiven

    def ask(self, kind: int, payload: bytes) -> Payload:
        """Send a request whose answer is one message; returns that message."""
        self._sequence += 1
        try:
            self._send(frame(kind, NLM_F_REQUEST, self._sequence, payload))
            while True:
                datagram = self._receive()
                for reply, flags, sequence, at, end in messages(datagram):
                    if sequence != self._sequence:
                        continue
                    if reply != NLMSG_ERROR:
                        return datagram, at, end
                    error = refusal(datagram, flags, at, end)
                    if error is not None:
                        raise error
        except KernelRefused:
            raise
        except BaseException:
            self.close()
            raise

    def dump(self, kind: int, reply_kind: int, payload: bytes) -> Generator[Payload]:
        """The payloads of a dump, one datagram at a time. Stopping early closes the socket.

        Raises:
            Interrupted: at the end, where the data changed meanwhile.
        """
        self._sequence += 1
        reader = DumpReader(reply_kind, self._sequence)
        try:
            self._send(frame(kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, payload))
            while not reader.done:
                yield from reader.payloads(self._receive())
        except BaseException:
            # Also for KernelRefused: whether the kernel still holds this dump open is not ours to guess.
            self.close()
            raise
        if reader.interrupted:
            raise Interrupted("the data changed while it was read")

    def _send(self, data: bytes) -> None:
        sent = self.socket.send(data)
        if sent != len(data):
            raise Malformed(f"only {sent} of {len(data)} bytes could be sent")

    def _receive(self) -> bytes:
        while True:
            try:
                datagram, _, flags, sender = self.socket.recvmsg(_RECEIVE)
            except BlockingIOError:
                raise TimeoutError(f"the kernel did not answer within {self._timeout:g} s") from None
            if flags & socket.MSG_TRUNC:
                raise Malformed(f"an answer is longer than {_RECEIVE} bytes")
            # Any process may send to this socket's address; the kernel's is 0.
            if sender[0] == 0:
                return datagram
