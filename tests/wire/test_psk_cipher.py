"""Preshared keys sealed at rest: what opens them, what does not, how keys are changed, what becomes of the peers."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway
from hypothesis import given
from hypothesis import strategies as st
from keys import some_key
from servers import RedisServer

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.settings import read
from peerlane.tasks.admin.peer_import import import_file
from peerlane.tasks.errors import Invalid, SettingsError
from peerlane.tasks.wgfile.export import render_in_order
from peerlane.tasks.wire.model import SEALED
from peerlane.tasks.wire.psk_cipher import PskCipher, Unsealable, cipher_of

KEY, OTHER = os.urandom(32), os.urandom(32)
PEER, NEIGHBOUR = some_key(), some_key()
SECRET = some_key()

MakeFile = Callable[..., Path]


@pytest.fixture
def key_file(tmp_path: Path) -> MakeFile:
    """A file of keys; each call makes another, for a process reads its own once."""
    made: list[Path] = []

    def make(*keys: bytes) -> Path:
        path = tmp_path / f"psk-{len(made)}.key"
        path.write_text("# newest first\n" + "".join(f"{base64.b64encode(key).decode()}\n" for key in keys))
        path.chmod(0o600)
        made.append(path)
        return path

    return make


# PskCipher itself


@given(psk=st.binary(min_size=32, max_size=32).filter(any), gateway=st.sampled_from(["iad", "fra"]))
def test_what_was_sealed_is_opened(psk: bytes, gateway: str) -> None:
    cipher, clear = PskCipher([KEY]), base64.b64encode(psk).decode()
    sealed = cipher.encrypt(gateway, PEER, clear)
    assert sealed is not None
    assert SEALED.fullmatch(sealed)
    assert cipher.decrypt(gateway, PEER, sealed) == clear


def test_the_same_key_is_never_sealed_the_same_way_twice() -> None:
    assert len({PskCipher([KEY]).encrypt("iad", PEER, SECRET) for _ in range(100)}) == 100


def test_a_sealed_key_is_nothing_in_another_peers_record_or_on_another_gateway() -> None:
    cipher = PskCipher([KEY])
    sealed = cipher.encrypt("iad", PEER, SECRET)
    for gateway, peer in (("iad", NEIGHBOUR), ("fra", PEER)):
        with pytest.raises(Unsealable, match="another peer, or changed since"):
            cipher.decrypt(gateway, peer, sealed)


def test_a_changed_byte_is_noticed() -> None:
    sealed = str(PskCipher([KEY]).encrypt("iad", PEER, SECRET))
    for place in range(len("enc:1:01234567:"), len(sealed)):
        changed = sealed[:place] + ("A" if sealed[place] != "A" else "B") + sealed[place + 1 :]
        with pytest.raises(Unsealable):
            PskCipher([KEY]).decrypt("iad", PEER, changed)


def test_an_old_key_opens_and_the_newest_seals() -> None:
    old, cipher = PskCipher([KEY]), PskCipher([OTHER, KEY])
    sealed = old.encrypt("iad", PEER, SECRET)
    assert cipher.decrypt("iad", PEER, sealed) == SECRET
    assert not cipher.current(sealed)
    assert cipher.current(cipher.encrypt("iad", PEER, SECRET))
    assert not cipher.current(SECRET)


def test_another_key_says_which_it_was() -> None:
    sealed = str(PskCipher([KEY]).encrypt("iad", PEER, SECRET))
    with pytest.raises(Unsealable, match=f"sealed with the key {sealed.split(':')[2]}, and .* holds another"):
        PskCipher([OTHER]).decrypt("iad", PEER, sealed)


def test_without_keys_what_is_clear_stays_so_and_what_is_sealed_stays_shut() -> None:
    assert PskCipher().encrypt("iad", PEER, SECRET) == SECRET
    assert PskCipher().decrypt("iad", PEER, SECRET) == SECRET
    assert PskCipher().current(SECRET)
    with pytest.raises(Unsealable, match="is not set"):
        PskCipher().decrypt("iad", PEER, PskCipher([KEY]).encrypt("iad", PEER, SECRET))


# The file


def test_a_file_that_others_may_read_is_refused(key_file: MakeFile) -> None:
    path = key_file(KEY)
    path.chmod(0o640)
    with pytest.raises(SettingsError, match=r"others may use it \(mode 0640\); chmod 600 it"):
        cipher_of(read(psk_key_file=path))


@pytest.mark.parametrize("content", ["", "# nothing\n", "c2hvcnQ=\n", "no base64 at all\n", "A" * 43 + "=\n"])
def test_a_file_without_a_sound_key_is_refused_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "psk.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="PEERLANE_PSK_KEY_FILE") as caught:
        cipher_of(read(psk_key_file=path))
    assert not any(line and line in str(caught.value) for line in content.splitlines())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"psk.key: No such file or directory"):
        cipher_of(read(psk_key_file=tmp_path / "psk.key"))


def test_a_gateway_whose_file_cannot_be_used_says_so_and_ends(gateway: MakeGateway, tmp_path: Path) -> None:
    site = gateway(psk_key_file=tmp_path / "absent.key", start=False)
    site.start(wait=False)
    assert site.await_end() == 2
    assert "absent.key: No such file or directory" in site.log


# Peers


def _stored(server: RedisServer, gateway: GatewayProcess, key: str) -> dict[str, object]:
    answer: dict[str, object] = json.loads(str(server.redis.hget(names.peers_key(gateway.name), key)))
    return answer


def _is_sealed(server: RedisServer, gateway: GatewayProcess, key: str) -> bool:
    return SEALED.fullmatch(str(_stored(server, gateway, key)["preshared_key"])) is not None


def _exported(client: Gateway) -> str:
    return "\n".join(render_in_order(client.info(), client.peers()))


def test_redis_holds_it_sealed_and_who_has_the_key_reads_it(
    redis_server: RedisServer, gateway: MakeGateway, client: MakeClient, key_file: MakeFile
) -> None:
    site = gateway(psk_key_file=key_file(KEY))
    ours = client(site, psk_key_file=key_file(KEY))
    key = some_key()
    assert ours.create_peer(key, preshared_key=SECRET).has_preshared_key
    assert _is_sealed(redis_server, site, key)
    stored = ours.peer(key)
    assert stored is not None
    assert stored.preshared_key == SECRET
    assert f"PresharedKey = {SECRET}" in _exported(ours)
    # Sealed anew each time, and the same wish all the same.
    assert ours.create_peer(key, preshared_key=SECRET).outcome == "existing"


def test_who_has_no_key_sees_that_there_is_one_and_exports_nothing(
    gateway: MakeGateway, client: MakeClient, key_file: MakeFile
) -> None:
    site = gateway(psk_key_file=key_file(KEY))
    stranger = client(site)
    key = some_key()
    # What it sends is clear on its way, and sealed at rest.
    assert stranger.create_peer(key, preshared_key=SECRET).has_preshared_key
    stored = stranger.peer(key)
    assert stored is not None
    assert stored.public()["has_preshared_key"]
    with pytest.raises(SettingsError, match="is sealed: set PEERLANE_PSK_KEY_FILE"):
        _exported(stranger)


def test_a_gateway_without_the_key_refuses_what_it_cannot_open(
    gateway: MakeGateway, client: MakeClient, key_file: MakeFile
) -> None:
    site = gateway()
    with pytest.raises(Invalid, match=r"sealed with the key .*, and PEERLANE_PSK_KEY_FILE is not set"):
        client(site, psk_key_file=key_file(KEY)).create_peer(some_key(), preshared_key=SECRET)


def test_an_import_is_sealed_on_its_way(
    redis_server: RedisServer, gateway: MakeGateway, client: MakeClient, key_file: MakeFile
) -> None:
    site = gateway(psk_key_file=key_file(KEY))
    ours = client(site, psk_key_file=key_file(KEY))
    key = some_key()
    conf = f"[Peer]\nPublicKey = {key}\nPresharedKey = {SECRET}\nAllowedIPs = 10.8.0.99/32\n".encode()
    app = ours._app  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the import takes the app itself
    assert import_file(conf, site.name, app=app).created == 1
    assert _is_sealed(redis_server, site, key)
    assert import_file(conf, site.name, app=app).existing == 1


def test_keys_that_stand_in_clear_are_sealed_at_the_next_start(
    redis_server: RedisServer, gateway: MakeGateway, client: MakeClient, key_file: MakeFile
) -> None:
    site = gateway()
    keys = [some_key() for _ in range(3)]
    for key in keys:
        client(site).create_peer(key, preshared_key=SECRET)
    without = some_key()
    client(site).create_peer(without)
    before = _stored(redis_server, site, keys[0])
    assert before["preshared_key"] == SECRET
    site.stop()
    path = key_file(KEY)
    site.start(psk_key_file=path)
    assert all(_is_sealed(redis_server, site, key) for key in keys)
    assert "3 preshared keys were sealed anew" in site.log
    after = _stored(redis_server, site, keys[0])
    assert {**after, "preshared_key": None} == {**before, "preshared_key": None}
    assert client(site, psk_key_file=path).create_peer(keys[0], preshared_key=SECRET).outcome == "existing"


def test_keys_are_changed_by_two_starts(
    redis_server: RedisServer, gateway: MakeGateway, client: MakeClient, key_file: MakeFile
) -> None:
    site = gateway(psk_key_file=key_file(KEY))
    key = some_key()
    client(site).create_peer(key, preshared_key=SECRET)
    first = _stored(redis_server, site, key)["preshared_key"]
    for keys in ([OTHER, KEY], [OTHER]):
        site.stop()
        site.start(psk_key_file=key_file(*keys))
        assert client(site).create_peer(key, preshared_key=SECRET).outcome == "existing"
    assert _stored(redis_server, site, key)["preshared_key"] != first
    assert site.log.count("sealed anew") == 1


def test_with_the_wrong_key_peers_are_set_aside_and_not_removed(
    redis_server: RedisServer, gateway: MakeGateway, client: MakeClient, key_file: MakeFile
) -> None:
    site = gateway(psk_key_file=key_file(KEY))
    key, plain = some_key(), some_key()
    address = client(site).create_peer(key, preshared_key=SECRET).allowed_ips[0]
    client(site).create_peer(plain)
    before = redis_server.redis.hgetall(names.peers_key(site.name))
    site.stop()
    site.start(psk_key_file=key_file(OTHER))
    assert f"the record of peer {key} cannot be used: its preshared key is sealed with the key" in site.log
    assert redis_server.redis.hgetall(names.peers_key(site.name)) == before
    assert client(site).create_peer(plain).outcome == "existing"
    assert client(site).create_peer(some_key()).allowed_ips[0] != address
    site.stop()
    site.start(psk_key_file=key_file(KEY))
    assert client(site).create_peer(key, preshared_key=SECRET).outcome == "existing"
