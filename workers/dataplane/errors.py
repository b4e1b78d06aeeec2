"""Translates the errors of netlink into KernelError, with the cause chained."""

from __future__ import annotations

import errno
import struct
from collections.abc import Generator
from contextlib import contextmanager

from peerlane.tasks.errors import KernelError
from peerlane.workers.dataplane.netlink.framing import Interrupted

#: What an errno means here, where the kernel's own words would not tell.
_MEANING = {
    errno.ENODEV: "the device is gone",
    errno.ENXIO: "the device is gone",
    errno.EPERM: "CAP_NET_ADMIN is needed",
    errno.EADDRINUSE: "its UDP port is taken",
    errno.EOPNOTSUPP: "the kernel has no WireGuard",
    errno.ENOBUFS: "answers were lost, what was done is unknown",
}


@contextmanager
def translated(operation: str) -> Generator[None]:
    """Translate OSError, Malformed, Interrupted, ValueError and struct.error of the body into KernelError.

    ``operation`` completes the sentence "cannot …".
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        meaning = _MEANING.get(error.errno or 0)
        raise KernelError(f"cannot {operation}: {f'{meaning} ({reason})' if meaning else reason}") from error
    except Interrupted as error:
        raise KernelError(f"cannot {operation}: it kept changing while it was read") from error
    except (ValueError, struct.error) as error:
        raise KernelError(f"cannot {operation}: {error}") from error
