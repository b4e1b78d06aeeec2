"""Limits a gateway's process to CAP_NET_ADMIN: it may configure the network, and has no other right of root.

If systemd starts it as its own user, it has nothing more (deploy/peerlane-gateway@.service). If root starts it, it
gives up the other capabilities for good before it opens the device, connects to Redis or starts a thread.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peerlane.tasks.errors import SettingsError

CAP_NET_ADMIN = 12
_CAP_SETPCAP = 8

_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 47, 2, 4

#: struct __user_cap_header_struct (version 3, this thread) and two of struct __user_cap_data_struct.
_HEADER = struct.Struct("=Ii")
_SETS = struct.Struct("=6I")
_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Rights:
    """The ids and capabilities of a thread, from /proc."""

    uid: int
    effective: frozenset[int]
    permitted: frozenset[int]
    inheritable: frozenset[int]
    ambient: frozenset[int]
    bounding: frozenset[int]
    no_new_privileges: bool

    @classmethod
    def of(cls, task: str = "thread-self") -> Rights:
        """The rights of a thread or process, from ``/proc/TASK``. Raises OSError."""
        lines = Path("/proc", task, "status").read_text(encoding="ascii", errors="replace").splitlines()
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)

        def capabilities(name: str) -> frozenset[int]:
            bits = int(fields[name], 16)
            return frozenset(number for number in range(64) if bits >> number & 1)

        return cls(
            uid=int(fields["Uid"].split()[1]),
            effective=capabilities("CapEff"),
            permitted=capabilities("CapPrm"),
            inheritable=capabilities("CapInh"),
            ambient=capabilities("CapAmb"),
            bounding=capabilities("CapBnd"),
            no_new_privileges=fields.get("NoNewPrivs", "0").strip() == "1",
        )


def confine_gateway(user: str | None, *, on_host: bool) -> None:
    """``confine`` for a data plane that changes this host's network; for another only if a user is named.

    Raises:
        SettingsError: as ``confine`` does.
    """
    if user is not None or on_host:
        confine(user)


def confine(user: str | None) -> None:
    """Become ``user``, if this is root and one is named. Keep CAP_NET_ADMIN, if present, and allow no more ever.

    Processes started from here on keep the same. Doing it twice changes nothing. Threads that run already keep what
    they have: call it before any is started.

    Raises:
        SettingsError: there is no such user, or only root could become it; or the kernel refuses.
    """
    account = _account(user) if user is not None else None
    before = Rights.of()
    if account is not None and before.uid not in (0, account.pw_uid):
        raise SettingsError(f"PEERLANE_USER is {user}, and only root can become another user than the one it is")
    keep = sorted({CAP_NET_ADMIN} & before.permitted)
    try:
        if _CAP_SETPCAP in before.effective:
            for number in sorted(before.bounding - {CAP_NET_ADMIN}):
                _prctl(_PR_CAPBSET_DROP, number)
        if account is not None and before.uid == 0 and account.pw_uid != 0:
            _prctl(_PR_SET_KEEPCAPS, 1)
            os.setgroups([])
            os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
            os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        _set_capabilities(keep)
        _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
        for number in keep:
            _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise SettingsError(f"privileges could not be given up: {error.strerror}") from None


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise SettingsError(f"PEERLANE_USER: there is no user {user} on this host") from None


def _prctl(option: int, *values: int) -> None:
    words = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if _libc.prctl(ctypes.c_int(option), *words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _set_capabilities(keep: Sequence[int]) -> None:
    """Set the effective, permitted and inheritable capabilities."""
    bits = sum(1 << number for number in keep)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    if _libc.capset(_HEADER.pack(_VERSION, 0), _SETS.pack(low, low, low, high, high, high)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
