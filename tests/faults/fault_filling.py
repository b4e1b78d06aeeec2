"""The writer of a fault run: ``celery -A fault_filling worker``. It may be told to serve after few peers are back."""

from __future__ import annotations

import os
from typing import Any, cast

import fault_device

from peerlane.workers import gateway
from peerlane.workers.start import recovery
from peerlane.workers.writer import filling

__all__ = ["app"]

#: Names how many peers are back before the lane is served, instead of the product's thousands.
AT_ONCE = "PEERLANE_TEST_AT_ONCE"
#: Peers added at a time then.
SLICE = 2

if AT_ONCE in os.environ:
    cast("Any", recovery).AT_ONCE = int(os.environ[AT_ONCE])
    cast("Any", filling).SLICE = SLICE
app = fault_device.app if fault_device.VARIABLE in os.environ else gateway.app
