"""Netlink framing: encodes attributes, decodes messages and the kernel's errors. Pure; sockets are in ``channel``.

Sources: include/uapi/linux/netlink.h, net/netlink/af_netlink.c, Documentation/userspace-api/netlink/intro.rst.
All integers are in host order unless said otherwise.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_EXCL = 0x200
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
#: On NLMSG_ERROR: the request is not quoted beyond its header; attributes follow.
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

NLA_F_NESTED = 0x8000
#: Strips the flags NESTED and NET_BYTEORDER from an attribute's type.
NLA_TYPE_MASK = 0x3FFF

GENL_ID_CTRL = 0x10
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2
_NLMSGERR_ATTR_MSG = 1

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
_INT = struct.Struct("=i")
_U16 = struct.Struct("=H")

#: One message's payload: the datagram it lies in, its first byte, the byte after its last.
Payload = tuple[bytes, int, int]


class Malformed(ValueError):
    """The bytes are no valid netlink message: cut short, overlapping, or of the wrong size."""


class Interrupted(Exception):
    """The data changed during the dump: entries may be missing or doubled."""


class KernelRefused(OSError):
    """The kernel has refused a request: ``errno``, and its message (extack) if it gave one."""


def frame(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One whole message. ``payload`` must be padded to four bytes, as everything made here is."""
    return HEADER.pack(16 + len(payload), kind, flags, sequence, 0) + payload


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(buffer: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Each attribute between ``at`` and ``end`` as (type, first byte of the value, byte after its last).

    Raises:
        Malformed: an attribute is shorter than its header or reaches past ``end``.
    """
    while at < end:
        if at + 4 > end:
            raise Malformed("an attribute is cut short")
        length, kind = ATTRIBUTE.unpack_from(buffer, at)
        if length < 4 or at + length > end:
            raise Malformed(f"an attribute says it has {length} bytes of the {end - at} there are")
        yield kind & NLA_TYPE_MASK, at + 4, at + length
        at += (length + 3) & ~3


def messages(datagram: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Each message as (type, flags, sequence, first byte of the payload, byte after its last).

    Raises:
        Malformed: a message is shorter than its header or reaches past the datagram.
    """
    at, size = 0, len(datagram)
    while at < size:
        if at + 16 > size:
            raise Malformed("a message is cut short")
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, at)
        if length < 16 or at + length > size:
            raise Malformed(f"a message says it has {length} bytes of the {size - at} there are")
        yield kind, flags, sequence, at + 16, at + length
        at += (length + 3) & ~3


def refusal(datagram: bytes, flags: int, at: int, end: int) -> KernelRefused | None:
    """The refusal in an NLMSG_ERROR; None for an acknowledgement (error 0).

    Raises:
        Malformed: no room for what every NLMSG_ERROR has.
    """
    if at + 20 > end:
        raise Malformed("an error message is cut short")
    (code,) = _INT.unpack_from(datagram, at)
    (quoted,) = struct.unpack_from("=I", datagram, at + 4)
    after = at + 20 if flags & NLM_F_CAPPED else at + 4 + ((quoted + 3) & ~3)
    return _refused(code, datagram, flags, after, end)


class DumpReader:
    """Reads one dump, datagram by datagram, and knows whether it is complete.

    ``done`` turns true with NLMSG_DONE. ``interrupted`` turns true with NLM_F_DUMP_INTR on *any* message: the
    kernel flags only the next message after a change, not the last one.
    """

    def __init__(self, kind: int, sequence: int) -> None:
        self._kind = kind
        self._sequence = sequence
        self.done = False
        self.interrupted = False

    def payloads(self, datagram: bytes) -> Iterator[Payload]:
        """The payloads of this dump in one datagram. Answers to other requests are passed over.

        Raises:
            KernelRefused: the kernel ended the dump with an error (NLMSG_ERROR, or the number in NLMSG_DONE).
            Malformed: the bytes are no netlink messages, or of a kind that does not belong in this dump.
        """
        for kind, flags, sequence, at, end in messages(datagram):
            if sequence != self._sequence or kind == NLMSG_NOOP:
                continue
            if flags & NLM_F_DUMP_INTR:
                self.interrupted = True
            if kind == self._kind:
                yield datagram, at, end
            elif kind == NLMSG_DONE:
                self.done = True
                if at + 4 <= end:
                    # Without this a dump that failed midway looks complete.
                    (code,) = _INT.unpack_from(datagram, at)
                    error = _refused(code, datagram, flags, at + 4, end)
                    if error is not None:
                        raise error
                return
            elif kind == NLMSG_ERROR:
                error = refusal(datagram, flags, at, end)
                if error is not None:
                    raise error
            else:
                raise Malformed(f"a message of type {kind} does not belong in this dump")


def family_request(name: str) -> bytes:
    """Payload that asks the controller for a generic netlink family; loads its module where it is one."""
    return struct.pack("=BBH", _CTRL_CMD_GETFAMILY, 1, 0) + attribute(_CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")


def family_id(payload: Payload) -> int:
    """The family's message type, from the controller's answer.

    Raises:
        Malformed: the answer holds none.
    """
    datagram, at, end = payload
    for kind, start, stop in attributes(datagram, at + 4, end):
        if kind == _CTRL_ATTR_FAMILY_ID and stop - start == 2:
            number: int = _U16.unpack_from(datagram, start)[0]
            return number
    raise Malformed("the controller's answer holds no family id")


def _refused(code: int, datagram: bytes, flags: int, at: int, end: int) -> KernelRefused | None:
    if code == 0:
        return None
    if not -4096 < code < 0:
        raise Malformed(f"{code} is no error number")
    text = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        for kind, start, stop in attributes(datagram, at, end):
            if kind == _NLMSGERR_ATTR_MSG:
                text += " (" + datagram[start:stop].rstrip(b"\0").decode("utf-8", "replace") + ")"
    return KernelRefused(-code, text)
