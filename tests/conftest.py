"""What all tests share: a real Redis server, gateways in processes of their own, clients of them."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import preloaded
import pytest
from celery.worker import state as worker_state
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close, new_name
from grouped_lane import GroupedLane
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from servers import RedisServer, serving
from waiting import PATIENCE
from writer_alone import WriterAlone

from peerlane import Gateway
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import Settings, read
from peerlane.tasks.admission.lanes import Lanes

# A shell without job control starts what is in its background with Ctrl-C ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What nohup starts ignores that its terminal goes, and so do its children.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

preloaded.enable()
pytest_plugins = ["pytester", "speeds", "kernel_bridge"]

hypothesis_settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
hypothesis_settings.register_profile("ci", hypothesis_settings.get_profile("default"), derandomize=True, database=None)
hypothesis_settings.load_profile("ci" if os.environ.get("CI") == "true" else "default")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays until the end: the garbage collector looks at none of it, meanwhile and afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction] - pytest uses it
    """Tests see the defaults, whatever the environment and /etc/peerlane say."""
    for name in [name for name in os.environ if name.startswith("PEERLANE_") and not name.startswith("PEERLANE_TEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("peerlane.config.settings.DEFAULT_SETTINGS_FILE", "/nonexistent/peerlane.toml")


@pytest.fixture(autouse=True)
def _no_order_to_stop_from_the_test_before(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction] - pytest uses it
    """A writer within the tests' process that is replaced tells Celery's worker there, by a global, to stop."""
    monkeypatch.setattr(worker_state, "should_stop", None)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The server that all tests share which do it no harm; each uses gateway names of its own."""
    with serving() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server for one test that restarts it, freezes it or fills it up."""
    with serving() as server:
        yield server


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> MakeSettings:
    """Makes settings; the shared server's unless ``redis_url`` says otherwise, and of callers that wait for long."""

    def make(**overrides: Any) -> Settings:
        overrides.setdefault("timeout", PATIENCE / 2)
        if "redis_url" not in overrides:
            overrides["redis_url"] = request.getfixturevalue("redis_server").url
        return read(**overrides)

    return make


@pytest.fixture
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeGateway]:
    """Starts gateways; ends them after the test, which fails if one has shown a traceback."""
    made: list[GatewayProcess] = []

    def make(
        name: str | None = None,
        *,
        redis: RedisServer | None = None,
        dataplane: str = "memory",
        prefix: Sequence[str] = (),
        start: bool = True,
        **settings: Any,
    ) -> GatewayProcess:
        url = settings.pop("redis_url", None)
        if url is None:
            url = (redis or cast("RedisServer", request.getfixturevalue("redis_server"))).url
        directory = tmp_path / f"gateway-{len(made)}"
        directory.mkdir()
        process = GatewayProcess(
            name or new_name(), str(url), directory, prefix=prefix, dataplane=dataplane, **settings
        )
        made.append(process)
        if start:
            process.start()
        return process

    yield make
    complaints: list[AssertionError] = []
    for process in made:
        try:
            process.finish()
        except AssertionError as error:
            complaints.append(error)
    if complaints:
        raise complaints[0]


@pytest.fixture(scope="session")
def lasting_gateway(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The process behind ``shared_gateway``; its log is read once all tests are through."""
    made = GatewayProcess(
        new_name(),
        redis_server.url,
        tmp_path_factory.mktemp("shared-gateway"),
        dataplane="memory",
        endpoint="vpn.example.com:51820",
    )
    made.start()
    yield made
    made.finish()


@pytest.fixture
def shared_gateway(lasting_gateway: GatewayProcess, client: MakeClient) -> Iterator[GatewayProcess]:
    """One without peers, for tests that neither end its writer nor change its state: starting one takes a second."""
    yield lasting_gateway
    lasting_gateway.resume()
    assert lasting_gateway.status is None, "a test that ends the writer starts a gateway of its own"
    lane = client(lasting_gateway, timeout=20)
    for peer in lane.peers():
        lane.delete_peer(peer.public_key)


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The gateways whose lanes have told a caller of this process that they hold its request.

    A lane holds it a moment earlier, when the caller does not know yet whether its push has succeeded.
    """
    gateways: list[str] = []
    pushed = Lanes.pushed

    def tell(lanes: Lanes, gateway: str, length: int, *, bulk: bool) -> None:
        pushed(lanes, gateway, length, bulk=bulk)
        gateways.append(gateway)

    monkeypatch.setattr(Lanes, "pushed", tell)
    return gateways


@pytest.fixture
def client(settings: MakeSettings) -> Iterator[MakeClient]:
    """Makes typed clients, each with an app and connections of its own."""
    apps: list[PeerlaneApp] = []

    def make(gateway: GatewayProcess | str, *, redis: RedisServer | None = None, **overrides: Any) -> Gateway:
        if redis is not None:
            overrides["redis_url"] = redis.url
        elif isinstance(gateway, GatewayProcess):
            overrides.setdefault("redis_url", gateway.settings["redis_url"])
        app = PeerlaneApp(settings(**overrides))
        apps.append(app)
        return Gateway(gateway if isinstance(gateway, str) else gateway.name, app=app)

    yield make
    for app in apps:
        close(app)


@pytest.fixture
def app(settings: MakeSettings) -> Iterator[PeerlaneApp]:
    """A client's app of its own."""
    made = PeerlaneApp(settings())
    yield made
    close(made)


@pytest.fixture
def bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[WriterAlone]:
    """A writer in this process, without a lane."""
    made = WriterAlone(redis_server, tmp_path)
    yield made
    made.close()


@pytest.fixture
def quick_redis(own_redis: RedisServer) -> RedisServer:
    """A server of its own that syncs nothing: for tests of nothing that is about that."""
    own_redis.redis.config_set("appendfsync", "no")
    return own_redis


@pytest.fixture
def lane(quick_redis: RedisServer, tmp_path: Path) -> Iterator[GroupedLane]:
    """A lane and its writer in this process."""
    made = GroupedLane(quick_redis, tmp_path)
    yield made
    made.close()
