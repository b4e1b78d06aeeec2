"""The data planes there are, and what each brings; made without rights and without touching a device."""

from __future__ import annotations

from typing import get_args

import pytest

from peerlane.config.settings import BadSettings, DataPlaneKind, read
from peerlane.tasks.errors import NoDataPlane
from peerlane.workers.dataplane.factory import Plane, open_plane


def plane(**settings: object) -> Plane:
    return open_plane(read(gateway="iad", **settings))


@pytest.mark.parametrize("kind", get_args(DataPlaneKind))
def test_every_kind_that_a_setting_may_name_is_there_under_its_name(kind: DataPlaneKind) -> None:
    opened = plane(dataplane=kind)
    opened.close()
    assert opened.kind == kind


def test_the_kernels_is_what_nobody_has_to_ask_for() -> None:
    opened = plane(interface="wg7")
    opened.close()
    assert (opened.kind, opened.lock_name, opened.on_host) == ("kernel", "wg7", True)
    assert opened.counters is not None
    assert opened.view is not None
    assert opened.view.index() == 0, "there is no such device"


def test_one_in_memory_is_its_writers_alone_and_locked_by_gateway_and_fleet() -> None:
    opened, other = plane(dataplane="memory"), plane(dataplane="memory", redis_url="redis://127.0.0.1:6379/1")
    assert (opened.counters, opened.view, opened.on_host) == (None, None, False)
    assert opened.lock_name.startswith("memory:iad@")
    assert opened.lock_name != other.lock_name
    opened.require()


def test_one_that_cannot_be_used_says_why_and_what_else_there_is() -> None:
    opened = plane()
    if (reason := opened.missing()) is None:
        pytest.skip("this process can make WireGuard devices")
    with pytest.raises(NoDataPlane, match="PEERLANE_DATAPLANE=memory") as caught:
        opened.require()
    assert reason in caught.value.message


def test_a_choice_between_kinds_is_no_kind() -> None:
    with pytest.raises(BadSettings, match=r"PEERLANE_DATAPLANE: .*'kernel' or 'memory'"):
        read(dataplane="auto")
