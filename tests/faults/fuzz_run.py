"""Plays fuzzed messages and records on a gateway in this process, and a part of the messages on a real worker too.

    make fuzz           or: python tests/faults/fuzz_run.py [--messages N] [--records N] [--worker N] [--from SEED]

Seeds are numbers one after the other; what fails names its seed, and ``--from SEED --messages 1`` plays it alone.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fuzz_lane import FuzzedLane
from fuzz_messages import Messages
from fuzz_records import FuzzedRecords
from gateways import GatewayProcess, close, new_name
from keys import some_key
from redis import Redis
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read

#: Messages between two looks at whether all is well.
BATCH = 500
CHANGED = "changed the device"


def play_messages(server: RedisServer, directory: Path, seeds: range) -> Counter[tuple[str, str]]:
    """Messages, in this process; what became of them."""
    lane = FuzzedLane(server, directory)
    try:
        messages = Messages(lane.name, lane.captured())
        for number, seed in enumerate(seeds, 1):
            lane.play(messages.case(seed))
            if number % BATCH == 0 or seed == seeds[-1]:
                lane.check()
        return lane.outcomes
    finally:
        lane.close()


def play_records(server: RedisServer, directory: Path, count: int, *, first: int = 0) -> int:
    """At least ``count`` records; how many there were."""
    fuzzed = FuzzedRecords(server, directory)
    seed = first
    try:
        while fuzzed.records < count:
            for act in (fuzzed.start_of_a_writer, fuzzed.what_a_gateway_says, fuzzed.results_and_epochs):
                try:
                    act(seed)
                except Exception as error:
                    raise AssertionError(f"seed {seed} ({act.__name__}): {error!r}") from error
            seed += 1
        return fuzzed.records
    finally:
        fuzzed.close()


def play_worker(server: RedisServer, directory: Path, seeds: range) -> int:
    """Messages put on the lane of a real worker; how many it took, all of them without ending."""
    site = GatewayProcess(new_name(), server.url, directory, dataplane="memory")
    site.start()
    app = PeerlaneApp(read(redis_url=server.url))
    redis = Redis.from_url(server.url)
    sender = FuzzedLane(server, directory)
    try:
        pid = site.pid
        # Captured for another gateway: only the lane they are put on is this one's.
        captured = [raw.replace(sender.name.encode(), site.name.encode()) for raw in sender.captured()]
        messages = Messages(site.name, captured)
        for start in range(seeds.start, seeds.stop, BATCH):
            batch = [messages.case(seed).raw for seed in range(start, min(start + BATCH, seeds.stop))]
            redis.lpush(names.lane_queue(site.name), *batch)
            eventually(lambda: site.look().waiting == 0, f"the messages from seed {start} being taken")
            assert Gateway(site.name, app=app).create_peer(some_key(), timeout=20).outcome == "created"
        assert site.status is None
        assert site.look().facts["holder_pid"] == str(pid), "the worker was another one in between"
        eventually(lambda: not redis.exists(names.unacked_key(site.name)), "every message being acknowledged")
        return len(seeds)
    finally:
        sender.close()
        redis.close()
        close(app)
        site.finish()


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=80_000)
    parser.add_argument("--records", type=int, default=25_000)
    parser.add_argument("--worker", type=int, default=5_000)
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="SEED")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    directory = Path(tempfile.mkdtemp(prefix="pl-"))
    server = RedisServer(directory)
    server.start()
    server.redis.config_set("appendonly", "no")
    began = time.monotonic()
    try:
        outcomes = play_messages(server, directory, range(chosen.first, chosen.first + chosen.messages))
        records = play_records(server, directory, chosen.records, first=chosen.first) if chosen.records else 0
        first = chosen.first + chosen.messages
        taken = play_worker(server, directory, range(first, first + chosen.worker)) if chosen.worker else 0
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)
    for family in dict.fromkeys(family for family, _ in sorted(outcomes)):
        total = sum(count for (kind, _), count in outcomes.items() if kind == family)
        sys.stdout.write(f"{family:45} {total:8,}, of which changed the device {outcomes[family, CHANGED]:,}\n")
    total = sum(outcomes.values()) + records + taken
    sys.stdout.write(
        f"{sum(outcomes.values()):,} messages in process, {records:,} records, {taken:,} messages to a real worker: "
        f"{total:,} cases in {time.monotonic() - began:.0f} s.\nNo writer ended, and no device was changed by what was "
        "no request.\n"
    )


if __name__ == "__main__":
    main()
