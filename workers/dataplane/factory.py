"""The device that a gateway's settings ask for: what it is to be, on which data plane, and what its lock is called."""

from __future__ import annotations

import hashlib

from peerlane.config.settings import Settings
from peerlane.tasks.errors import NoDataPlane
from peerlane.tasks.wire.prefix import Prefix
from peerlane.workers.dataplane import DataPlane, DeviceSpec
from peerlane.workers.dataplane.memory import MemoryDataPlane


def device_spec(settings: Settings) -> tuple[DeviceSpec, tuple[Prefix, ...], tuple[Prefix, ...]]:
    """The device, the pools and what else is served."""
    pools, serves = tuple(map(Prefix.parse, settings.pools)), tuple(map(Prefix.parse, settings.serves))
    spec = DeviceSpec(
        interface=settings.interface,
        private_key_file=settings.key_file,
        listen_port=settings.listen_port,
        addresses=tuple((pool.network + 1, pool) for pool in pools),
        routes=pools,
        mtu=settings.mtu,
    )
    return spec, pools, serves


def memory_device(settings: Settings) -> str:
    """What the lock calls a device in memory: namesakes of two fleets on one host do not disturb each other."""
    fleet = hashlib.sha256(settings.redis_url.get_secret_value().encode()).hexdigest()[:8]
    return f"memory:{settings.gateway}@{fleet}"


def open_plane(settings: Settings) -> tuple[str, DataPlane]:
    """The data plane the settings ask for, and which it is.

    Raises:
        NoDataPlane: the kernel's was asked for and cannot be used here; says why.
    """
    if settings.dataplane == "memory":
        return "memory", MemoryDataPlane()
    # pyroute2 is there on hosts with the extra «gateway» only; a memory gateway does without.
    from peerlane.workers.dataplane.kernel import KernelDataPlane, kernel_available  # noqa: PLC0415

    missing = kernel_available()
    if missing is None:
        return "kernel", KernelDataPlane()
    raise NoDataPlane(
        f"this host cannot run a gateway: {missing}; PEERLANE_DATAPLANE=memory keeps no tunnel, for tests"
    )
