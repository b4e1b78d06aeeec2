"""A start that would leave every client without a way in is refused, with the way out; what is doubtful is told."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from commands import Shell, document
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings
from keys import some_key
from servers import RedisServer

from peerlane.config import names
from peerlane.config.hosts import endpoint_doubt
from peerlane.tasks.errors import SettingsError
from peerlane.workers.dataplane import keyfile
from peerlane.workers.start.registration import own_endpoint


def key_file(site: GatewayProcess) -> Path:
    return Path(str(site.settings["private_key_file"]))


@pytest.fixture
def site(gateway: MakeGateway, client: MakeClient) -> GatewayProcess:
    """A gateway that has stopped, with a peer."""
    made = gateway(endpoint="vpn.example.com:51820")
    client(made).create_peer(some_key())
    made.stop()
    return made


def registered(site: GatewayProcess, server: RedisServer) -> str:
    return str(server.redis.hget(names.gateway_key(site.name), "public_key"))


class TestAKey:
    def test_that_is_lost_is_not_made_anew(self, site: GatewayProcess, redis_server: RedisServer) -> None:
        before = registered(site, redis_server)
        key_file(site).unlink()
        site.start(wait=False)
        assert site.await_end() == 2
        assert f"clients were given {before}" in site.log
        assert "--accept-new-key" in site.log
        assert not key_file(site).exists()
        assert registered(site, redis_server) == before

    def test_that_is_another_is_refused_until_the_old_one_is_back(
        self, site: GatewayProcess, redis_server: RedisServer, client: MakeClient
    ) -> None:
        before, kept = registered(site, redis_server), key_file(site).read_text()
        key_file(site).unlink()
        other = keyfile.public_key(keyfile.load_or_make(key_file(site)))
        site.start(wait=False)
        assert site.await_end() == 2
        assert f"the key here has the public key {other}, and clients were given {before}" in site.log
        key_file(site).write_text(kept)
        site.start()
        assert client(site).info().public_key == before

    def test_that_no_client_was_given_may_change(
        self, gateway: MakeGateway, redis_server: RedisServer, client: MakeClient
    ) -> None:
        site = gateway()
        before = registered(site, redis_server)
        site.stop()
        key_file(site).unlink()
        site.start()
        assert client(site).info().public_key != before

    def test_that_is_accepted_is_an_alarm_until_a_person_clears_it(
        self, site: GatewayProcess, redis_server: RedisServer, client: MakeClient
    ) -> None:
        before, usual = registered(site, redis_server), list(site.program)
        key_file(site).unlink()
        site.program = ["-m", "peerlane.workers.cli", "gateway", "run", site.name, "--accept-new-key", "--loglevel"]
        site.start()
        now = registered(site, redis_server)
        assert now != before
        site.stop()
        site.program = usual
        site.start()
        shell = Shell(site)
        (alarm,) = shell.ask("gateway", "show", site.name)["alarms"]
        assert alarm["kind"] == "key_changed"
        assert f"from {before} to {now}" in alarm["message"]
        assert client(site).create_peer(some_key()).gateway_public_key == now
        assert shell.ask("gateway", "clear-alarm", site.name, "key_changed")["outcome"] == "cleared"
        assert shell.ask("gateway", "show", site.name)["alarms"] == []
        refused = shell.ask("gateway", "clear-alarm", site.name, "key_changed", status=1)
        assert refused["error"]["code"] == "invalid"


class TestAnEndpoint:
    @pytest.mark.parametrize("name", ["(none)", "a b", ""])
    def test_that_a_setting_would_be_refused_for_is_no_default(
        self, name: str, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socket, "getfqdn", lambda: name)
        with pytest.raises(SettingsError, match="PEERLANE_ENDPOINT is not set") as caught:
            own_endpoint(settings(redis_url="unix:///none"))
        assert f"({name}:51820)" in caught.value.message
        assert own_endpoint(settings(redis_url="unix:///none", endpoint="vpn.example.com:1")) == "vpn.example.com:1"

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "vm", "[::]", "db.localhost"])
    def test_that_few_clients_reach_is_doubted(self, host: str) -> None:
        assert "set PEERLANE_ENDPOINT" in str(endpoint_doubt(f"{host}:51820"))

    @pytest.mark.parametrize("host", ["vpn.example.com", "203.0.113.7", "[2001:db8::1]", "10.0.0.4"])
    def test_that_clients_may_reach_is_not(self, host: str) -> None:
        assert endpoint_doubt(f"{host}:51820") is None

    def test_in_doubt_is_told_in_the_log_by_doctor_and_in_lists(self, gateway: MakeGateway) -> None:
        site = gateway(endpoint="vm:51820")
        shell = Shell(site)
        assert "clients may not reach its endpoint: few clients can look up vm" in site.log
        listed = shell.run("gateway", "list")
        assert f"{site.name}: clients may not reach its endpoint" in listed.output
        (row,) = [g for g in shell.ask("gateway", "list")["gateways"] if g["name"] == site.name]
        assert "few clients" in row["endpoint_doubt"]
        answer = document(shell.run("doctor", site.name, "--json"))
        assert [check["verdict"] for check in answer["checks"] if check["what"] == "endpoint"] == ["warning"]


class TestDoctorOfAGateway:
    @pytest.fixture(autouse=True)
    def _as_on_its_host(self, site: GatewayProcess, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction] - pytest uses it
        monkeypatch.setenv("PEERLANE_DATAPLANE", "memory")
        monkeypatch.setenv("PEERLANE_PRIVATE_KEY_FILE", str(key_file(site)))

    def key(self, site: GatewayProcess) -> dict[str, Any]:
        answer = document(Shell(site).run("doctor", site.name, "--json"))
        (check,) = [check for check in answer["checks"] if check["what"] == "key"]
        return check

    def test_knows_the_key_that_clients_were_given(self, site: GatewayProcess) -> None:
        assert self.key(site)["verdict"] == "ok"

    def test_finds_another_key(self, site: GatewayProcess, redis_server: RedisServer) -> None:
        key_file(site).unlink()
        other = keyfile.public_key(keyfile.load_or_make(key_file(site)))
        check = self.key(site)
        assert check["verdict"] == "failed"
        assert other in check["sentence"]
        assert registered(site, redis_server) in check["sentence"]

    def test_finds_a_key_that_is_lost_and_makes_none(self, site: GatewayProcess) -> None:
        key_file(site).unlink()
        assert "put it back" in self.key(site)["sentence"]
        assert not key_file(site).exists()

    def test_looks_at_forwarding_for_both_families(self, site: GatewayProcess) -> None:
        answer = document(Shell(site).run("doctor", site.name, "--json"))
        assert sum(check["what"] == "forwarding" for check in answer["checks"]) == 2

    def test_says_of_a_gateway_that_never_registered_that_it_did_not(self, site: GatewayProcess) -> None:
        answer = document(Shell(site).run("doctor", "nobodys", "--json"))
        assert ("failed", "has not registered") in [
            (check["verdict"], check["sentence"][:18])
            for check in answer["checks"]
            if check["what"] == "gateway nobodys"
        ]
