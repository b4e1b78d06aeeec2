"""Settings: read once, from variables over a file over defaults; what is wrong is named, what is secret hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from celery import Celery
from gateways import close
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from servers import RedisServer

from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.names import CREATE_PEER
from peerlane.config.redis.client import connect
from peerlane.config.redis.url import celery_url
from peerlane.config.settings import BadSettings, Settings, read, shown
from peerlane.config.validators import network
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.values.prefix import Prefix

PASSWORD = "correct-horse-battery"


class TestSettingsAreRead:
    def test_from_defaults_where_nothing_is_said(self) -> None:
        chosen = read()
        assert chosen.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"
        assert chosen.gateway is None
        assert chosen.pools == ("10.8.0.0/16", "fd00:8::/64")
        assert str(chosen.key_file) == "/etc/peerlane/wg0.key"

    def test_from_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PEERLANE_GATEWAY", "iad")
        monkeypatch.setenv("PEERLANE_POOLS", " 10.1.0.0/16, fd01::/64 ,")
        monkeypatch.setenv("PEERLANE_LISTEN_PORT", "4500")
        monkeypatch.setenv("PEERLANE_REDIS_URL", "unix:///run/redis.sock")
        chosen = read()
        assert (chosen.gateway, chosen.listen_port) == ("iad", 4500)
        assert chosen.pools == ("10.1.0.0/16", "fd01::/64")
        assert chosen.redis_url.get_secret_value() == "unix:///run/redis.sock"

    def test_from_a_file_that_a_variable_names(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "p.toml"
        file.write_text('gateway = "fra"\npools = ["10.2.0.0/16"]\nlisten_port = 1\n')
        monkeypatch.setenv("PEERLANE_SETTINGS", str(file))
        monkeypatch.setenv("PEERLANE_LISTEN_PORT", "2")
        chosen = read(timeout=9)
        assert (chosen.gateway, chosen.pools) == ("fra", ("10.2.0.0/16",))
        assert chosen.listen_port == 2, "a variable wins over the file"
        assert chosen.timeout == 9, "what is said in the program wins over both"

    def test_and_cannot_be_changed_afterwards(self) -> None:
        chosen = read()
        with pytest.raises(ValueError, match="frozen"):
            chosen.gateway = "x"  # pyright: ignore[reportAttributeAccessIssue] - that is the point


class TestWhatIsWrongIsNamed:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("GATEWAY", "IAD"),
            ("GATEWAY", "a.b"),
            ("LISTEN_PORT", "0"),
            ("LISTEN_PORT", "http"),
            ("DATAPLANE", "magic"),
            ("INTERFACE", "much-too-long-a-name"),
            ("INTERFACE", "../etc"),
            ("RESULT_TTL", "1"),
            ("TIMEOUT", "0"),
            ("TIMEOUT", "nan"),
            ("UNKNOWN_PEERS", "guess"),
            ("REDIS_URL", "http://localhost"),
            ("REDIS_URL", "unix://relative"),
            ("REDIS_URL", ""),
            ("REDIS_URL", "redis://"),
            ("REDIS_URL", "redis://h/zero"),
            ("REDIS_URL", "redis://h/0/1"),
            ("REDIS_URL", "redis://h/0?socket_timeout=9"),
            ("REDIS_URL", "unix:///run/r.sock?db=x"),
            ("REDIS_URL", "unix:///run/r.sock?socket_timeout=9"),
            ("REDIS_URL", "unix://"),
            ("REDIS_URL", "redis://h h/0"),
            ("REDIS_URL", "REDIS://h/0"),
            ("REDIS_URL", "Rediss://h/0"),
            ("REDIS_URL", " redis://h/0"),
            ("ENDPOINT", "vpn.example.com"),
            ("ENDPOINT", "vpn.example.com:0"),
            ("ENDPOINT", ""),
            ("POOLS", "10.8.0.1/24"),
            ("POOLS", "10.8.0.0/24, 10.8.0.0/16"),
            ("POOLS", "10.8.0.0/31"),
            ("POOLS", "0.0.0.0/0"),
            ("POOLS", "10.8.0.0/255.255.0.0"),
            ("SERVES", "10.8.4.0/24"),
            ("SERVES", "fe80::%eth0/64"),
            ("CLIENT_ALLOWED_IPS", "everything"),
            ("DNS", "one two"),
            ("LABELS", "eu"),
            ("LABELS", "tier=a,tier=b"),
            ("LABELS", "=a"),
            ("MTU", "576"),
            ("LANE_CAP", "-1"),
            ("LANE_CAP", "1" + "0" * 30),
            ("MAX_PEERS", "1e9"),
            ("FAIR_SHARE", "inf"),
            ("SWEEP_SHARE", "-0.1"),
            ("SWEEP_IDLE_AFTER", "1" + "0" * 20),
            ("SWEEP_EVERY", "-inf"),
            ("OBSERVE_EVERY", "nan"),
            ("PRIVATE_KEY_FILE", ""),
            ("PSK_KEY_FILE", " "),
            ("USER", ""),
        ],
    )
    def test_by_its_variable(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        monkeypatch.setenv(f"PEERLANE_{name}", value)
        with pytest.raises(BadSettings, match=f"PEERLANE_{name}: "):
            read()

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("PEERLANE_REDIS_ULR", "did you mean PEERLANE_REDIS_URL?"),
            ("PEERLANE_POOL", "did you mean PEERLANE_POOLS?"),
            ("peerlane_gatway", "did you mean PEERLANE_GATEWAY?"),
            ("PEERLANE_SETTING", "did you mean PEERLANE_SETTINGS?"),
            ("PEERLANE_X", "misspelled?"),
        ],
    )
    def test_when_a_variable_is_misspelled(self, monkeypatch: pytest.MonkeyPatch, name: str, meant: str) -> None:
        monkeypatch.setenv(name, PASSWORD)
        with pytest.raises(BadSettings) as refused:
            read()
        assert str(refused.value) == f"no such setting: {name} ({meant})"

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("REGION", "EU", "expected a name of a-z, 0-9 and -"),
            ("INTERFACE", "-wg0", "expected a device's name: at most 15 letters"),
            ("FAIR_LABEL", "Tenant", "expected a label's name"),
            ("ENDPOINT", "b\u00fccher.example:51820", "an international name as xn--"),
        ],
    )
    def test_in_words(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
        monkeypatch.setenv(f"PEERLANE_{name}", value)
        with pytest.raises(BadSettings, match=says):
            read()

    def test_all_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PEERLANE_ENDPOINT", "nowhere")
        monkeypatch.setenv("PEERLANE_MTU", "1")
        with pytest.raises(BadSettings, match=r"PEERLANE_ENDPOINT: .*; PEERLANE_MTU: "):
            read()

    def test_but_the_tests_own_variables_are_none_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PEERLANE_TEST_ANYTHING", "x")
        assert read()

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (b"gateway = ", "is not TOML"),
            (b"gateway = '\xff'", "is not UTF-8"),
            (b"x = " + b"[" * 5000, "is not TOML"),
            (b"colour = 'red'", r"the settings file has no such setting: colour \(misspelled\?\)"),
            (b"redis_ulr = 'x'", r"no such setting: redis_ulr \(did you mean redis_url\?\)"),
            (b"PEERLANE_GATEWAY = 'x'", r"no such setting: PEERLANE_GATEWAY \(did you mean gateway\?\)"),
            (b"[peerlane]\ngateway = 'x'", "no such setting: peerlane"),
            (b"listen_port = 0", "PEERLANE_LISTEN_PORT"),
            (b"listen_port = true", "PEERLANE_LISTEN_PORT"),
            (b"timeout = inf", "PEERLANE_TIMEOUT"),
            (b"pools = [1]", "PEERLANE_POOLS"),
            (b"endpoint = 'nowhere'", "PEERLANE_ENDPOINT: an endpoint is host:port"),
            (b'private_key_file = "a\\u0000b"', "PEERLANE_PRIVATE_KEY_FILE"),
        ],
        ids=lambda value: value[:20] if isinstance(value, bytes) else "",
    )
    def test_in_the_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes, says: str) -> None:
        file = tmp_path / "p.toml"
        file.write_bytes(text)
        monkeypatch.setenv("PEERLANE_SETTINGS", str(file))
        with pytest.raises(BadSettings, match=says):
            read()

    def test_when_the_named_file_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PEERLANE_SETTINGS", "/nonexistent.toml")
        with pytest.raises(BadSettings, match=r"/nonexistent\.toml"):
            read()


class TestSecretsAreHidden:
    URL = f"redis://user:{PASSWORD}@db.example:6380/2"

    def test_where_settings_are_shown(self) -> None:
        chosen = read(redis_url=self.URL)
        for text in (repr(chosen), str(chosen), json.dumps(shown(chosen)), chosen.model_dump_json()):
            assert PASSWORD not in text
        assert shown(chosen)["redis_url"] == "redis://user:(hidden)@db.example:6380/2"

    @pytest.mark.parametrize("url", ["redis://h:1/0", "unix:///run/r.sock", "rediss://[::1]:6379/0", "redis://me@h/1"])
    def test_and_what_is_no_secret_is_not(self, url: str) -> None:
        assert shown(read(redis_url=url))["redis_url"] == url

    @pytest.mark.parametrize(
        "url",
        [
            f"http://user:{PASSWORD}@h",
            f"redis://user:{PASSWORD}@h:port/0",
            f"redis://u:{PASSWORD}/x@h",
            f"redis://u:{PASSWORD}#x@h",
            f"redis://u:1#{PASSWORD}@h",
            f"redis://u:1?{PASSWORD}@h",
            f"redis://u:[{PASSWORD}@h",
            f"redis://u:{PASSWORD}\u2100@h",
            f"redis://h/0?client_name={PASSWORD}",
        ],
    )
    def test_in_errors(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        monkeypatch.setenv("PEERLANE_REDIS_URL", url)
        try:
            text = json.dumps(shown(read()))
        except BadSettings as error:
            text = str(error) + repr(error.__cause__)
        assert PASSWORD not in text


def test_celery_is_given_a_socket_in_its_own_spelling() -> None:
    assert celery_url(read(redis_url="unix:///run/r.sock")) == "redis+socket:///run/r.sock"
    assert celery_url(read(redis_url="unix:///run/r.sock?db=3")) == "redis+socket:///run/r.sock?virtual_host=3"
    assert celery_url(read(redis_url="rediss://h:1/0")) == "rediss://h:1/0"


@pytest.mark.parametrize("number", [0, 2])
def test_broker_results_and_peers_are_in_the_same_database(redis_server: RedisServer, number: int) -> None:
    app = PeerlaneApp(read(redis_url=f"{redis_server.url}?db={number}"))
    lane = f"gateway.db{number}"
    Celery.send_task(app, CREATE_PEER, kwargs={"gateway": f"db{number}"}, task_id=f"db{number}.1", queue=lane)
    cast("Any", app.backend).client.set(f"result-{number}", "x")
    with Redis(unix_socket_path=str(redis_server.socket), db=number) as redis:
        assert lanes_of(app).redis.connection_pool.connection_kwargs["db"] == number
        assert redis.llen(lane) == 1
        assert redis.delete(lane, f"result-{number}") == 2
    close(app)


PREFIXES = st.one_of(
    st.ip_addresses(network="10.0.0.0/8").map(str),
    st.builds("{}/{}".format, st.ip_addresses(), st.integers(-1, 140)),
    st.from_regex(r"[0-9a-f:.%/ ]{0,24}", fullmatch=True),
    st.text(max_size=12),
)


@given(text=PREFIXES)
def test_a_prefix_that_settings_take_is_one_everywhere_and_no_other(text: str) -> None:
    try:
        parsed = Prefix.parse(text)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - each with its own sentence
            network(text)
    else:
        assert Prefix.parse(str(network(text))) == parsed


@given(
    text=st.one_of(st.text(max_size=30), st.from_regex(r"(rediss?|unix)://[a-z0-9@:/?#\[\].]{0,30}", fullmatch=True))
)
def test_a_redis_url_that_settings_take_is_read_alike_by_all(text: str) -> None:
    try:
        chosen = read(redis_url=text)
    except BadSettings:
        return
    app = PeerlaneApp(chosen)
    ours = connect(chosen).connection_pool.connection_kwargs
    results = cast("dict[str, Any]", cast("Any", app.backend).connparams)
    broker = app.connection_for_write()
    place = (ours.get("host"), ours.get("port", 6379), ours.get("path"), ours.get("db", 0))
    assert place == (results.get("host"), results.get("port", 6379), results.get("path"), int(results["db"]))
    if "path" in ours:
        assert int((broker.virtual_host or "0").strip("/") or 0) == ours.get("db", 0)
    else:
        assert (broker.hostname, broker.port or 6379) == (ours["host"], ours.get("port", 6379))
        assert int((broker.virtual_host or "0").strip("/") or 0) == ours.get("db", 0)
    app.close()


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
