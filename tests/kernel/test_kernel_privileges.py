"""A gateway that is not root: it becomes another user, or is one from the start, and keeps CAP_NET_ADMIN alone."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Protocol

import pytest
from devices import run
from gateways import ROOT, GatewayProcess, MakeClient
from keys import some_key
from observers import Observer, ending
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.config.settings import read
from peerlane.tasks.errors import SettingsError
from peerlane.workers.host.privileges import CAP_NET_ADMIN, Rights, confine

USER = "nobody"
UID = pwd.getpwnam(USER).pw_uid
ONLY = frozenset({CAP_NET_ADMIN})

kernel = pytest.mark.kernel


@pytest.fixture
def place(own_redis: RedisServer) -> Iterator[Path]:
    """A directory of the user's; the server can be reached from it."""
    place = Path(tempfile.mkdtemp(prefix="peerlane-"))
    place.chmod(0o755)
    os.chown(place, UID, -1)
    own_redis.directory.chmod(0o755)
    own_redis.socket.chmod(0o777)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def host() -> Iterator[list[str]]:
    """Before a command: run it in a network namespace of its own, where others may read this interpreter."""
    name = f"pv{os.getpid()}"
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    yield ["ip", "netns", "exec", name, "sh", "-c", f'{_readable()}exec "$@"', "sh"]
    run("ip", "netns", "del", name)


def _readable() -> str:
    """Shell that makes this interpreter readable for all, in the mount namespace that ``ip netns exec`` has made."""
    closed = [path for path in Path(sys.base_prefix).resolve().parents if not path.stat().st_mode & 0o001]
    if not closed:
        return ""
    top = closed[-1]
    below = Path(sys.base_prefix).resolve().relative_to(top).parts[0]
    return (
        f"mkdir -p /run/behind && mount --bind {top} /run/behind && mount -t tmpfs -o mode=755 tmpfs {top} && "
        f"mkdir {top / below} && mount --bind /run/behind/{below} {top / below} && "
    )


def _rights(pid: int) -> list[Rights]:
    """Those of each of a process' threads."""
    return [Rights.of(f"{pid}/task/{task.name}") for task in Path(f"/proc/{pid}/task").iterdir()]


def _assert_confined(pid: int, uid: int) -> None:
    for rights in _rights(pid):
        assert rights == Rights(
            uid=uid,
            effective=ONLY,
            permitted=ONLY,
            inheritable=ONLY,
            ambient=ONLY,
            bounding=ONLY,
            no_new_privileges=True,
        )


class Make(Protocol):
    def __call__(self, *words: str, **settings: object) -> GatewayProcess: ...


@pytest.fixture
def gateway(own_redis: RedisServer, place: Path, host: list[str]) -> Iterator[Make]:
    """Makes the gateway iad, whose command comes after ``words``; ends it."""
    made: list[GatewayProcess] = []

    def make(*words: str, **settings: object) -> GatewayProcess:
        process = GatewayProcess("iad", own_redis.url, place, prefix=[*host, *words], dataplane="kernel", **settings)
        made.append(process)
        return process

    yield make
    for process in made:
        process.finish()


@kernel
def test_root_becomes_the_user_and_a_peer_is_created_end_to_end(
    own_redis: RedisServer, place: Path, host: list[str], gateway: Make, client: MakeClient
) -> None:
    site = gateway(user=USER)
    site.start()
    _assert_confined(site.pid, UID)
    key = some_key()
    ours = client("iad", redis=own_redis)
    assert ours.create_peer(key, preshared_key=some_key()).outcome == "created"
    assert key in run(*host[:4], "wg", "show", "wg0", "peers")
    assert ours.delete_peer(key).outcome == "deleted"
    file = place / "iad.key"
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (UID, 0o600)
    assert site.stop() == 0


@kernel
def test_so_does_its_observer(own_redis: RedisServer, gateway: Make, client: MakeClient) -> None:
    site = gateway(user=USER, observe_every="1")
    site.start()
    key = some_key()
    client("iad", redis=own_redis).create_peer(key)
    with ending(observer := Observer(site)):
        _assert_confined(observer.pid, UID)
        eventually(lambda: observer.report("reading").get("peers"), "the counters to be read")


@kernel
def test_a_device_that_was_lost_comes_back_without_root(
    own_redis: RedisServer, host: list[str], gateway: Make, client: MakeClient
) -> None:
    site = gateway(user=USER, serves=("10.77.0.0/16",))
    site.start()
    key = some_key()
    client("iad", redis=own_redis).create_peer(key, allowed_ips=["10.77.0.0/24"])
    run(*host[:4], "ip", "link", "del", "wg0")

    def back() -> bool:
        links = run(*host[:4], "sh", "-c", "wg show wg0 peers 2>/dev/null; ip route show dev wg0 2>/dev/null; true")
        return key in links and "10.77.0.0/24" in links

    eventually(back, "device, peer and route")


@kernel
def test_a_user_with_the_one_capability_needs_no_root(
    own_redis: RedisServer, gateway: Make, client: MakeClient
) -> None:
    # What deploy/peerlane-gateway@.service has systemd do.
    words = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"]
    words += ["--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin"]
    site = gateway(*words)
    site.start()
    _assert_confined(site.pid, UID)
    assert client("iad", redis=own_redis).create_peer(some_key()).outcome == "created"


@kernel
def test_root_that_is_to_stay_root_keeps_one_capability(
    own_redis: RedisServer, place: Path, gateway: Make, client: MakeClient
) -> None:
    os.chown(place, 0, -1)
    site = gateway()
    site.start()
    _assert_confined(site.pid, 0)
    assert client("iad", redis=own_redis).create_peer(some_key()).outcome == "created"


@kernel
def test_both_processes_of_gateway_run_have_given_up_what_root_has(
    own_redis: RedisServer, gateway: Make, client: MakeClient
) -> None:
    site = gateway(user=USER)
    site.program = ["-m", "peerlane.workers.cli", "gateway", "run", "iad", "--loglevel"]
    site.start()
    eventually(lambda: own_redis.redis.hget(names.observer_key("iad"), "pid"), "the observer")
    writer = own_redis.redis.hget(names.gateway_key("iad"), "holder_pid")
    observer = own_redis.redis.hget(names.observer_key("iad"), "pid")
    assert len({str(site.pid), writer, observer}) == 3
    for pid in (site.pid, int(str(writer)), int(str(observer))):
        _assert_confined(pid, UID)
    assert client("iad", redis=own_redis).create_peer(some_key()).outcome == "created"
    assert site.stop() == 0


@kernel
def test_without_the_capability_a_sentence_says_so(gateway: Make) -> None:
    words = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--bounding-set=-all"]
    site = gateway(*words, "--inh-caps=-all")
    site.start(wait=False)
    assert site.await_end() == 1
    assert "this process may not change network devices (it lacks CAP_NET_ADMIN)" in site.log


@kernel
def test_a_key_that_the_user_may_not_read_is_named(place: Path, gateway: Make) -> None:
    key = place / "iad.key"
    key.write_text(some_key())
    key.chmod(0o600)
    site = gateway(user=USER)
    site.start(wait=False)
    assert site.await_end() == 2
    assert f"private key file {key}: Permission denied" in site.log


def test_a_user_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="PEERLANE_USER: there is no user nobody-of-that-name on this host"):
        confine("nobody-of-that-name")


def test_the_unit_runs_it_with_one_capability_and_as_nobody_else() -> None:
    # Its directives repeat, which ConfigParser takes for a mistake.
    text = (ROOT / "deploy" / "peerlane-gateway@.service").read_text()
    parsed = ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(text)
    service = parsed["Service"]
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"] == "CAP_NET_ADMIN"
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["Restart"] == "always"
    settings = {name.removeprefix("PEERLANE_").lower() for name in re.findall(r"Environment=(PEERLANE_[A-Z_]+)=", text)}
    assert settings - {"settings"} <= set(type(read()).model_fields)
    assert "gateway run %i" in service["ExecStart"]
