"""A Redis server that lets in nobody but the users that ``peerlane acl`` prints, each with its printed rights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import RedisServer, server_directory

from peerlane.tasks.admin.acl import User
from peerlane.workers.cli.main import main
from peerlane.workers.store import procedures as functions

#: Two gateways, so that there is something foreign to each.
GATEWAYS = ("iad", "fra")


class FencedServer(RedisServer):
    """Its own ``redis`` is the administrator's."""

    def __init__(self, directory: Path, lines: str) -> None:
        """``lines`` are an aclfile."""
        aclfile = directory / "users.acl"
        aclfile.write_text(lines)
        self.passwords = dict(re.findall(r"^user (\S+) on >(\S+)", lines, flags=re.MULTILINE))
        super().__init__(directory, user="admin", password=self.passwords["admin"], aclfile=str(aclfile))

    def url_of(self, user: str) -> str:
        """A user's URL for PEERLANE_REDIS_URL."""
        return f"unix://{user}:{self.passwords[user]}@{self.socket}"

    def client(self, user: str) -> Redis:
        """A bare connection of a user."""
        return Redis(
            unix_socket_path=str(self.socket),
            username=user,
            password=self.passwords[user],
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What ``peerlane acl`` says."""
    assert main.main(["acl", *arguments], standalone_mode=False) == 0
    return capsys.readouterr().out


def set_users(server: RedisServer, users: Iterable[User], password: str) -> None:
    """Make these users on a server that runs, all with one password."""
    for user in users:
        words = user.line("setuser", password, oldest=True).replace(" (", "\n(").split("\n")
        server.redis.execute_command(*words[0].split(), *words[1:])


@contextmanager
def fenced(lines: str, *, load: bool = True) -> Generator[FencedServer]:
    """A server with these users; with the writers' functions, unless told otherwise."""
    directory = server_directory()
    server = FencedServer(directory, lines)
    try:
        server.start()
        if load:
            functions.load(server.redis)
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)
