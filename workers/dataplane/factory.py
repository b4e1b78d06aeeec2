"""Makes a gateway's data plane from its settings: the writing and the reading side, and the spec of the device.

Only this module knows the kinds of data planes. Another kind needs its own module, a row in ``_KINDS`` and its name in
``peerlane.config.settings.DataPlaneKind``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from peerlane.config.settings import DataPlaneKind, Settings
from peerlane.tasks.errors import NoDataPlane
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.dataplane import DataPlane, DeviceSpec, DeviceView
from peerlane.workers.dataplane.counters import CounterSource
from peerlane.workers.dataplane.kernel import KernelDataPlane, kernel_available
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.dataplane.reader import KernelCounters, KernelView


@dataclass(frozen=True, slots=True)
class Plane:
    """One gateway's data plane for its writer and its observer. Making it does not touch the device."""

    kind: str
    #: What the writer's and the observer's lock are named after.
    lock_name: str
    writer: DataPlane
    #: None, as ``view`` is, where only the writer's process has the device.
    counters: CounterSource | None
    view: DeviceView | None
    #: Whether it changes this host's network: its processes then give up every right but that one.
    on_host: bool
    #: Why this process cannot use it here; None if it can.
    missing: Callable[[], str | None]

    def require(self) -> None:
        """Check that this process can use it.

        Raises:
            NoDataPlane: says why not.
        """
        if (reason := self.missing()) is not None:
            raise NoDataPlane(
                f"this host cannot run a gateway: {reason}; PEERLANE_DATAPLANE=memory keeps no tunnel, for tests"
            )

    def close(self) -> None:
        """Close the sockets. The device stays as it is."""
        for part in (self.writer, self.counters, self.view):
            if part is not None:
                part.close()


def open_plane(settings: Settings) -> Plane:
    """The data plane of the settings. Needs no rights yet: sockets are opened at their first use."""
    return _KINDS[settings.dataplane](settings)


def device_spec(settings: Settings) -> tuple[DeviceSpec, tuple[Prefix, ...], tuple[Prefix, ...]]:
    """The spec of the device, the pools, and the other prefixes that are served."""
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


def _kernel(settings: Settings) -> Plane:
    interface = settings.interface
    counters, view = KernelCounters(interface), KernelView(interface)
    return Plane("kernel", interface, KernelDataPlane(), counters, view, on_host=True, missing=kernel_available)


def _memory(settings: Settings) -> Plane:
    # Namesakes of two fleets on one host do not disturb each other.
    fleet = hashlib.sha256(settings.redis_url.get_secret_value().encode()).hexdigest()[:8]
    lock_name = f"memory:{settings.gateway}@{fleet}"
    return Plane("memory", lock_name, MemoryDataPlane(), None, None, on_host=False, missing=lambda: None)


_KINDS: Mapping[DataPlaneKind, Callable[[Settings], Plane]] = {"kernel": _kernel, "memory": _memory}
