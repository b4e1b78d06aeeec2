"""What callers are told by a Redis that does not let them in, for tests of TLS and of Sentinels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from gateways import MakeSettings, close
from keys import some_key
from loops import run_and_leave_nothing

from peerlane import AsyncGateway
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.errors import OutcomeUnknown


@dataclass(frozen=True)
class Refusal:
    """What is wrong with a server or with the settings of a caller, and what the caller is told."""

    name: str
    says: str


def refused_in_asyncio(settings: MakeSettings, overrides: dict[str, Any]) -> None:
    """Check that an asyncio client is told that nothing was sent, and leaves no connection."""
    app = PeerlaneApp(settings(**overrides))

    async def create() -> None:
        async with AsyncGateway("iad", app=app) as gateway:
            await gateway.create_peer(some_key(), timeout=3)  # a server that is silent is tried until then

    with pytest.raises(OutcomeUnknown, match="nothing was sent"):
        run_and_leave_nothing(create)
    close(app)
