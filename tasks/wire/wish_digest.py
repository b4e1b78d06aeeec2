"""The digest of a wish: what tells whether a request id is used again for the same wish or for another.

It goes with the request as a message header and is kept in the commit record. A record without one, as earlier
versions and other senders make it, is anybody's. The digest is over the whole wish, a preshared key included: of that
nothing can be learned from it, for the key is 32 random bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pydantic import BaseModel

#: The message header.
HEADER = "wish"

_DIGEST = re.compile(r"[0-9a-f]{32}")


def wish_digest(task: str, *wishes: BaseModel) -> str:
    """That of a wish as its model has checked it, or of a list's wishes in their order.

    What is left out and what is named as the default are the same.
    """
    fields: list[dict[str, Any]] = [wish.model_dump(exclude={"deadline"}, exclude_defaults=True) for wish in wishes]
    text = json.dumps([task, *fields], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sound_digest(value: object) -> str:
    """The digest that a message header holds; '' where it holds none."""
    return value if isinstance(value, str) and _DIGEST.fullmatch(value) else ""
