"""What container engines put under our prefix is left alone, and hides neither a setting nor a misspelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlane.config import links
from peerlane.config.settings import PREFIX, BadSettings, Settings, read

#: As `docker run --link redis:peerlane-redis` sets them.
DOCKER = {
    "PORT": "tcp://172.17.0.2:6379",
    "PORT_6379_TCP": "tcp://172.17.0.2:6379",
    "PORT_6379_TCP_ADDR": "172.17.0.2",
    "PORT_6379_TCP_PORT": "6379",
    "PORT_6379_TCP_PROTO": "tcp",
    "PORT_6379_TCP_START": "tcp://172.17.0.2:6379",
    "PORT_6379_TCP_END": "tcp://172.17.0.2:6380",
    "PORT_6379_TCP_PORT_START": "6379",
    "PORT_6379_TCP_PORT_END": "6380",
    "NAME": "/frosty_hopper/peerlane-redis",
    "ENV_REDIS_VERSION": "8.6.3",
    "ENV_HOME": "",
}
#: As Kubernetes sets them for a service with two ports.
KUBERNETES = {
    "SERVICE_HOST": "10.96.0.11",
    "SERVICE_PORT": "6379",
    "SERVICE_PORT_REDIS": "6379",
    "SERVICE_PORT_REDIS_EXPORTER": "9121",
    "PORT": "tcp://10.96.0.11:6379",
    "PORT_51820_UDP": "udp://[fd00::11]:51820",
    "PORT_51820_UDP_PROTO": "udp",
    "PORT_51820_UDP_PORT": "51820",
    "PORT_51820_UDP_ADDR": "fd00::11",
}

#: peerlane-redis, ...: also services whose variables begin as a setting does, and one that is named peerlane.
every_name = pytest.mark.parametrize("name", ["REDIS", "FLOWER", "REDIS_URL", "GATEWAY", "LISTEN", "PRIVATE_KEY", ""])


def put(monkeypatch: pytest.MonkeyPatch, name: str, variables: dict[str, str]) -> None:
    for rest, value in variables.items():
        monkeypatch.setenv("_".join(filter(None, ["PEERLANE", name, rest])), value)


@every_name
def test_a_service_of_kubernetes_changes_no_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read()
    put(monkeypatch, name, KUBERNETES)
    assert read() == before


@every_name
def test_a_link_of_docker_changes_no_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read()
    put(monkeypatch, name, DOCKER)
    assert read() == before


def test_a_setting_that_is_set_beside_them_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, "REDIS", KUBERNETES | DOCKER)
    monkeypatch.setenv("PEERLANE_REDIS_URL", "redis://10.96.0.11:6379/0")
    monkeypatch.setenv("PEERLANE_LISTEN_PORT", "4500")
    settings = read()
    assert settings.redis_url.get_secret_value() == "redis://10.96.0.11:6379/0"
    assert settings.listen_port == 4500


def test_what_the_program_says_wins_over_a_link_of_the_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERLANE_LISTEN_PORT", "tcp://10.96.0.11:6379")
    assert read().listen_port == 51820
    assert read(listen_port=4500).listen_port == 4500


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("PEERLANE_LISEN_PORT", "51820", "did you mean PEERLANE_LISTEN_PORT?"),
        ("PEERLANE_LISTEN_PORTS", "tcp://10.96.0.11:6379", "did you mean PEERLANE_LISTEN_PORT?"),
        ("PEERLANE_REDIS_PORT", "6379", "did you mean"),
        ("PEERLANE_REDIS_PORT", "tcp://redis.example.net:6379", "did you mean"),
        ("PEERLANE_REDIS_PORT_6379_TCP_ADDR", "redis.example.net", "misspelled?"),
        ("PEERLANE_REDIS_PORT_TCP_ADDR", "10.0.0.7", "misspelled?"),
        ("PEERLANE_REDIS_SERVICE_HOST", "redis", "misspelled?"),
        ("PEERLANE_REDIS_SERVICE_PORT", "redis", "misspelled?"),
        ("PEERLANE_GATEWAY_NAME", "iad", "did you mean"),
        ("PEERLANE_REDIS_NAME", "redis", "did you mean"),
        ("PEERLANE_REDIS_ENV_REDIS_VERSION", "8.6.3", "misspelled?"),
    ],
)
def test_what_no_engine_would_write_is_a_misspelled_setting(
    name: str, value: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as refused:
        read()
    assert f"no such setting: {name}" in str(refused.value)
    assert meant in str(refused.value)


def test_a_bad_value_of_a_setting_stays_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERLANE_LISTEN_PORT", "http://10.96.0.11:6379")
    with pytest.raises(BadSettings, match="PEERLANE_LISTEN_PORT"):
        read()


@given(name=st.sampled_from(sorted(Settings.model_fields)), value=st.text(max_size=40).filter(lambda v: "://" not in v))
def test_no_value_of_a_setting_is_taken_for_a_link(name: str, value: str) -> None:
    variable = f"{PREFIX}{name.upper()}"
    assert not links.of_an_engine(variable, {variable: value}, PREFIX)
