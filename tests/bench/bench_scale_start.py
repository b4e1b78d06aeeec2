"""Starts of a gateway, as bench_scale measures them: the program itself, Redis to lane open, the last peer back."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Container

from bench_report import Figures
from gateways import GatewayProcess
from redis import Redis
from waiting import Stopwatch, eventually

from peerlane.config import names

#: Seconds between two looks. One asks for two fields of a hash: on one processor it takes little from who starts.
EVERY = 0.05
#: What a writer's log says at the end of its filling.
_FILLED = re.compile(r"all peers are on the device: \d+ more in ([0-9.]+) s")


def supervised(gateway: GatewayProcess, python: str) -> None:
    """Have the gateway be started as operators do: a supervisor, which starts the writer, and then the observer."""
    gateway.interpreter = python
    # -P, as the supervisor starts its processes: nothing is imported from the working directory.
    gateway.program = ["-P", "-m", "peerlane.workers.cli", "gateway", "run", gateway.name, "--loglevel"]


def writer_alone(gateway: GatewayProcess, python: str) -> None:
    """Have only the writer be started, as the supervisor starts it."""
    supervised(gateway, python)
    gateway.program[-1:] = ["--only", "writer", "--loglevel"]


class Starts:
    """Measures a gateway's starts. The writer tells in Redis when it begins to read its peers, and when it serves."""

    def __init__(self, gateway: GatewayProcess, redis: Redis) -> None:
        self._gateway, self._redis = gateway, redis
        self._key = names.gateway_key(gateway.name)

    def start(self) -> Figures:
        """Start it, and return once its lane is served. In seconds."""
        self._redis.hdel(self._key, "phase")
        watch = Stopwatch()
        self._gateway.start(wait=False)
        self._await({"recovering", "serving"}, "the gateway registering", within=120)
        process = watch.seconds
        self._await({"serving"}, "the lane being served", within=600)
        whole = watch.seconds
        return {"process_s": round(process, 2), "open_s": round(whole - process, 2), "start_s": round(whole, 2)}

    def _await(self, phases: Container[str], awaited: str, within: float) -> None:
        def reached() -> bool:
            assert self._gateway.status is None, self._gateway.log[-4000:]
            return str(self._redis.hget(self._key, "phase")) in phases

        eventually(reached, awaited, within=within, every=EVERY)

    def filled(self) -> float:
        """Wait until the last peer is back; how many seconds after the lane was opened, as the writer's log says."""
        eventually(lambda: self._coming() == 0, "the last peer being back", within=900, every=5 * EVERY)
        time.sleep(5 * EVERY)  # the line of the log stands before the heartbeat; this is for the file
        lines = _FILLED.findall(self._gateway.log)
        return float(lines[-1]) if lines else 0.0

    def _coming(self) -> int:
        return int(self._redis.hget(self._key, "recovering") or 0)

    def undisturbed(self) -> Figures:
        """One start that nobody asks anything meanwhile, to its last peer; the device is lost again after it."""
        figures = self.start()
        figures["back_s"] = round(figures["open_s"] + self.filled(), 2)
        self._gateway.kill()
        self.lose_device()
        return figures

    def lose_device(self) -> None:
        """As a reboot does. A simulated device is lost with its writer."""
        if self._gateway.settings["dataplane"] == "kernel":
            subprocess.run(["ip", "link", "del", str(self._gateway.settings["interface"])], check=True)
