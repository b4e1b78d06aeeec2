"""What a writer tells of itself: the newest last, whoever was on the way to Redis first."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import cast

from conftest import MakeSettings
from waiting import eventually

from workers.heartbeat import Heartbeat
from workers.store import Store
from workers.writer import Writer


class SlowStore:
    """Stands in for a Redis whose answer to the first heartbeat takes long."""

    gateway = "iad"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.asked = threading.Event()
        self.answers = threading.Event()

    def heartbeat(self, redis: object = None, **fields: str) -> bool:
        if not self.asked.is_set():
            self.asked.set()
            assert self.answers.wait(20)
        self.told.append(fields["phase"])
        return True


def test_a_beat_on_its_way_does_not_tell_an_older_phase_afterwards(settings: MakeSettings) -> None:
    store, without_peers = SlowStore(), SimpleNamespace(table=SimpleNamespace(peers={}))
    beating = Heartbeat(
        settings(redis_url="unix:///nonexistent/redis.sock"), cast("Store", store), cast("Writer", without_peers)
    )
    beating.start()
    try:
        assert store.asked.wait(20), "the first beat, which says recovering"
        entering = threading.Thread(target=beating.enter, args=("serving",))
        entering.start()
        entering.join(0.3)  # it would be through by now if it did not wait for that beat
        store.answers.set()
        entering.join(20)
        eventually(lambda: len(store.told) >= 2, "both having been told")
        assert store.told[:2] == ["recovering", "serving"]
        assert set(store.told[1:]) == {"serving"}
    finally:
        store.answers.set()
        beating.stop()
