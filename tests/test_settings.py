"""Settings: read once, from variables over a file over defaults; what is wrong is named, what is secret hidden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.settings import BadSettings, Settings, celery_url, read, shown

PASSWORD = "correct-horse-battery"


class TestSettingsAreRead:
    def test_from_defaults_where_nothing_is_said(self) -> None:
        found = read()
        assert found.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"
        assert found.gateway is None
        assert found.pools == ("10.8.0.0/16", "fd00:8::/64")
        assert str(found.key_file) == "/etc/peerlane/wg0.key"

    def test_from_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PEERLANE_GATEWAY", "iad")
        monkeypatch.setenv("PEERLANE_POOLS", " 10.1.0.0/16, fd01::/64 ,")
        monkeypatch.setenv("PEERLANE_LISTEN_PORT", "4500")
        monkeypatch.setenv("PEERLANE_REDIS_URL", "unix:///run/redis.sock")
        found = read()
        assert (found.gateway, found.listen_port) == ("iad", 4500)
        assert found.pools == ("10.1.0.0/16", "fd01::/64")
        assert found.redis_url.get_secret_value() == "unix:///run/redis.sock"

    def test_from_a_file_that_a_variable_names(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "p.toml"
        file.write_text('gateway = "fra"\npools = ["10.2.0.0/16"]\nlisten_port = 1\n')
        monkeypatch.setenv("PEERLANE_SETTINGS", str(file))
        monkeypatch.setenv("PEERLANE_LISTEN_PORT", "2")
        found = read(timeout=9)
        assert (found.gateway, found.pools) == ("fra", ("10.2.0.0/16",))
        assert found.listen_port == 2, "a variable wins over the file"
        assert found.timeout == 9, "what is said in the program wins over both"

    def test_and_cannot_be_changed_afterwards(self) -> None:
        found = read()
        with pytest.raises(ValueError, match="frozen"):
            found.gateway = "x"  # pyright: ignore[reportAttributeAccessIssue] - that is the point


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
        ],
    )
    def test_by_its_variable(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        monkeypatch.setenv(f"PEERLANE_{name}", value)
        with pytest.raises(BadSettings, match=f"PEERLANE_{name}: "):
            read()

    def test_when_a_variable_is_misspelled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PEERLANE_REDIS_ULR", "redis://x")
        with pytest.raises(BadSettings, match="PEERLANE_REDIS_ULR"):
            read()

    def test_but_the_tests_own_variables_are_none_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PEERLANE_TEST_ANYTHING", "x")
        assert read()

    @pytest.mark.parametrize(
        ("text", "says"), [("gateway = ", "TOML"), ('colour = "red"', "COLOUR"), ("listen_port = 0", "LISTEN_PORT")]
    )
    def test_in_the_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, says: str) -> None:
        file = tmp_path / "p.toml"
        file.write_text(text)
        monkeypatch.setenv("PEERLANE_SETTINGS", str(file))
        with pytest.raises(BadSettings, match=says):
            read()

    def test_when_the_named_file_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PEERLANE_SETTINGS", "/nonexistent.toml")
        with pytest.raises(BadSettings, match=r"/nonexistent\.toml"):
            read()


class TestSecretsAreHidden:
    URL = f"redis://user:{PASSWORD}@db.example:6380/2?client_name={PASSWORD}"

    def test_where_settings_are_shown(self) -> None:
        found = read(redis_url=self.URL)
        for text in (repr(found), str(found), json.dumps(shown(found)), found.model_dump_json()):
            assert PASSWORD not in text
        assert shown(found)["redis_url"] == "redis://user:(hidden)@db.example:6380/2"

    @pytest.mark.parametrize("url", ["redis://h:1/0", "unix:///run/r.sock", "rediss://[::1]:6379/0", "redis://me@h/1"])
    def test_and_what_is_no_secret_is_not(self, url: str) -> None:
        assert shown(read(redis_url=url))["redis_url"] == url

    @pytest.mark.parametrize(
        "url", [f"http://user:{PASSWORD}@h", f"redis://user:{PASSWORD}@h:port/0", f"redis://u:{PASSWORD}/x@h"]
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
    assert celery_url(read(redis_url="rediss://h:1/0")) == "rediss://h:1/0"


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
