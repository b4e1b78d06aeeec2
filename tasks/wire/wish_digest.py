"""The digest of a wish, which shows whether a request id is used again for the same wish or for another.

It is a header of the request's message and is kept in the commit record. A record without a digest, as earlier versions
and other senders make it, matches any wish. The digest covers the whole wish, also a preshared key. It reveals nothing
of that key, which is 32 random bytes.
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
    """The digest of a checked wish, or of a list's wishes in their order.

    What is left out and what is named as the default are the same.
    """
    fields: list[dict[str, Any]] = [wish.model_dump(exclude={"deadline"}, exclude_defaults=True) for wish in wishes]
    text = json.dumps([task, *fields], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sound_digest(value: object) -> str:
    """The digest in a message header; '' if there is none."""
    return value if isinstance(value, str) and _DIGEST.fullmatch(value) else ""
