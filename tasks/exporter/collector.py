"""Reads the fleet from Redis at each scrape for prometheus_client, which only this file of the package imports."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from redis import Redis
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.redis.failures import failure
from peerlane.tasks.errors import OutcomeUnknown, SettingsError, StorageError
from peerlane.tasks.exporter.families import ALL, PER_PEER, Family
from peerlane.tasks.exporter.samples import Sample, samples
from peerlane.tasks.redis.errors import reading, scan
from peerlane.tasks.status.fleet_snapshot import FleetReader, FleetSnapshot
from peerlane.tasks.values.activity import PeerActivity
from peerlane.tasks.wire.model import check_public_key

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

log = logging.getLogger(__name__)

#: Whether Redis could write its files: label → field of INFO persistence.
_PERSISTENCE = {
    "append": "aof_last_write_status",
    "rewrite": "aof_last_bgrewrite_status",
    "snapshot": "rdb_last_bgsave_status",
}


class FleetCollector:
    """A collector of prometheus_client's: each scrape is a few round trips, however many gateways there are."""

    def __init__(self, redis: Redis, *, per_peer: bool = False) -> None:
        """``per_peer`` adds series for each peer, which takes a page of reads for every 1,000 of them."""
        self._redis, self._per_peer = redis, per_peer
        self._reader = FleetReader(redis, measured=True)
        #: Why the last scrape could not read Redis; None if it could.
        self._trouble: str | None = None
        self._telling = threading.Lock()

    def collect(self) -> Iterator[Any]:
        """The families for prometheus_client. If Redis is away, only ``peerlane_redis_up``."""
        began = time.monotonic()
        families = {family.name: _made(family) for family in (*ALL, *(PER_PEER if self._per_peer else ()))}
        trouble = None
        try:
            self._read(families)
        except (OutcomeUnknown, StorageError) as error:
            families = {family.name: _made(family) for family in ALL}
            trouble = error.message
        self._tell(trouble)
        _put(families, "peerlane_redis_up", (), float(trouble is None))
        _put(families, "peerlane_exporter_read_seconds", (), time.monotonic() - began)
        yield from families.values()

    def describe(self) -> Iterator[Any]:
        """The possible families, so that prometheus_client can detect duplicates. Reads nothing."""
        return (_made(family) for family in (*ALL, *PER_PEER))

    def _read(self, families: Mapping[str, Any]) -> None:
        snapshot = self._reader.read()
        for status in snapshot.gateways:
            for sample in samples(status):
                _put_of(families, status.gateway, sample)
        with reading():
            pipe = self._redis.pipeline(transaction=False)
            pipe.info("persistence")
            pipe.info("memory")
            persistence, memory = cast("tuple[object, object]", tuple(pipe.execute(raise_on_error=False)))
        self._of_redis(families, _info(persistence), _info(memory))
        if self._per_peer:
            with reading():
                self._of_peers(families, snapshot)

    def _of_redis(self, families: Mapping[str, Any], persistence: dict[str, Any], memory: dict[str, Any]) -> None:
        for file, field in _PERSISTENCE.items():
            if field in persistence and (file == "snapshot" or persistence.get("aof_enabled")):
                _put(families, "peerlane_redis_persistence_ok", (file,), float(persistence[field] == "ok"))
        for name, field in (("used", "used_memory"), ("limit", "maxmemory")):
            if field in memory:
                _put(families, f"peerlane_redis_memory_{name}_bytes", (), float(memory[field]))

    def _of_peers(self, families: Mapping[str, Any], snapshot: FleetSnapshot) -> None:
        for status in snapshot.gateways:
            interface = status.lane.facts.get("interface", "")[:15]
            for raw, stored in scan(self._redis, names.seen_key(status.gateway)):
                key, activity = raw.decode(errors="replace"), PeerActivity.from_stored(stored)
                if activity is None or not _is_key(key):
                    continue
                for name, value in (
                    ("wireguard_sent_bytes_total", activity.tx_bytes),
                    ("wireguard_received_bytes_total", activity.rx_bytes),
                    ("wireguard_latest_handshake_seconds", activity.last_seen or 0),
                ):
                    _put(families, name, (status.gateway, interface, key), value)

    def _tell(self, trouble: str | None) -> None:
        """Log one line when Redis goes away, and one when it is back."""
        with self._telling:
            before, self._trouble = self._trouble, trouble
        if trouble is not None and before is None:
            log.warning("the fleet cannot be read: %s", trouble)
        elif trouble is None and before is not None:
            log.warning("the fleet can be read again")


def _info(answer: object) -> dict[str, Any]:
    """Redis' INFO; empty if this user may not read it."""
    if isinstance(answer, RedisError):
        log.debug("Redis does not describe itself: %s", failure(answer))
        return {}
    return cast("dict[str, Any]", answer)


def _is_key(text: str) -> bool:
    try:
        return bool(check_public_key(text))
    except ValueError:
        return False


def _put_of(families: Mapping[str, Any], gateway: str, sample: Sample) -> None:
    name, labels, value = sample
    if isinstance(value, tuple):
        buckets, total = value
        families[name].add_metric((gateway, *labels), buckets, total)
    else:
        _put(families, name, (gateway, *labels), value)


def _put(families: Mapping[str, Any], name: str, labels: tuple[str, ...], value: float) -> None:
    families[name].add_metric(labels, value)


def _made(family: Family) -> GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily:
    from prometheus_client.core import (  # noqa: PLC0415 - the extra [exporter] brings it
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    match family.kind:
        case "counter":
            return CounterMetricFamily(family.name, family.about, labels=family.label_names)
        case "histogram":
            return HistogramMetricFamily(family.name, family.about, labels=family.label_names)
        case "gauge":
            return GaugeMetricFamily(family.name, family.about, labels=family.label_names)


class MetricsServer:
    """Serves metrics over HTTP, in its own threads, until it is stopped."""

    def __init__(self, collector: FleetCollector, host: str, port: int) -> None:
        """Serve from now on.

        Raises:
            SettingsError: prometheus_client is not installed, or nothing can listen there.
        """
        try:
            from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415 - as above
        except ImportError:
            raise SettingsError("prometheus_client is not installed: install the extra peerlane[exporter]") from None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(cast("Any", collector))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise SettingsError(f"nothing can listen on {host}:{port}: {why}") from None

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return self._server.server_port

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
