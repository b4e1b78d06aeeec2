"""Keys for tests: random, canonical, and nobody's."""

from __future__ import annotations

import base64
import os


def some_key() -> str:
    """A new public (or preshared) key in base64."""
    return base64.b64encode(os.urandom(32)).decode()


def key_number(number: int) -> str:
    """The same key for the same number, for tests that must repeat themselves. ``number`` is 1 or more."""
    return base64.b64encode(number.to_bytes(32, "big")).decode()
