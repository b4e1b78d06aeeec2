"""The exporter's families of metrics: names, kinds, labels. Tests compare rules and dashboards with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peerlane.tasks.values.metrics import BUCKETS

Kind = Literal["gauge", "counter", "histogram"]

#: A gateway's states; it is in one of them.
STATES = ("active", "draining", "recovering", "stuck", "stopped", "down")
#: Every second bound: fewer series where there are many histograms.
FEWER_BUCKETS = BUCKETS[1::2]
#: At most so many series a gateway, whatever its hashes hold; tests/operators/test_exporter.py counts them.
MOST_SERIES = 150


@dataclass(frozen=True, slots=True)
class Family:
    """A family of metrics. ``labels`` come after ``gateway``, which all families except Redis' have."""

    name: str
    kind: Kind
    about: str
    labels: tuple[str, ...] = ()
    of_gateway: bool = True

    @property
    def label_names(self) -> tuple[str, ...]:
        """All of its labels."""
        return ("gateway", *self.labels) if self.of_gateway else self.labels


def _family(name: str, kind: Kind, about: str, *labels: str, of_gateway: bool = True) -> Family:
    return Family(name, kind, about, labels, of_gateway=of_gateway)


ALL = (
    _family("peerlane_redis_up", "gauge", "Whether this scrape could read Redis.", of_gateway=False),
    _family("peerlane_exporter_read_seconds", "gauge", "How long this scrape has read Redis.", of_gateway=False),
    _family(
        "peerlane_redis_persistence_ok",
        "gauge",
        "Whether Redis' last write of its append-only file, last rewrite of it and last snapshot went well.",
        "what",
        of_gateway=False,
    ),
    _family("peerlane_redis_memory_used_bytes", "gauge", "Memory that Redis uses.", of_gateway=False),
    _family("peerlane_redis_memory_limit_bytes", "gauge", "Redis' maxmemory; 0 for none.", of_gateway=False),
    _family(
        "peerlane_gateway_info",
        "gauge",
        "What a gateway says of itself.",
        "region",
        "version",
        "dataplane",
        "interface",
    ),
    _family("peerlane_gateway_state", "gauge", "1 for the state that the gateway is in.", "state"),
    _family("peerlane_peers", "gauge", "Peers in the writer's table."),
    _family("peerlane_peers_limit", "gauge", "Peers beyond which creates are refused."),
    _family("peerlane_pool_addresses", "gauge", "Addresses that a pool can give out.", "pool"),
    _family("peerlane_pool_addresses_held", "gauge", "Addresses of a pool that peers hold.", "pool"),
    _family("peerlane_lane_waiting", "gauge", "Messages that wait in the lane.", "queue"),
    _family("peerlane_lane_limit", "gauge", "Messages in a queue beyond which callers are refused."),
    _family("peerlane_lane_oldest_seconds", "gauge", "For how long the oldest message has waited.", "queue"),
    _family("peerlane_heartbeat_age_seconds", "gauge", "Time since the last sign of life, by Redis' clock.", "process"),
    _family("peerlane_writer_start_time_seconds", "gauge", "When the writer began; its counters began at 0 then."),
    _family("peerlane_writer_epoch", "gauge", "Grows by one with each start of a writer."),
    _family("peerlane_requests_total", "counter", "Requests answered by the writer.", "op", "outcome", "code"),
    _family("peerlane_request_seconds", "histogram", "From sending a request to its commit.", "op"),
    _family(
        "peerlane_request_stage_seconds",
        "histogram",
        "Stages of single creates and deletes: queue (sent to taken), plan, device, commit.",
        "stage",
    ),
    _family(
        "peerlane_recoveries_total",
        "counter",
        "Times that device and table were made equal to Redis; each start is one.",
    ),
    _family("peerlane_recovery_seconds_total", "counter", "Time that recoveries took."),
    _family("peerlane_redis_round_trip_seconds", "gauge", "The writer's last heartbeat to Redis and back."),
    _family("peerlane_set_aside_messages", "gauge", "Messages set aside (gateway poison)."),
    _family("peerlane_alarm", "gauge", "1 while an alarm stands.", "kind"),
    _family("peerlane_sweeps_total", "counter", "Sweeps by how they ended.", "outcome"),
    _family("peerlane_sweep_removed_total", "counter", "Peers removed by sweeps.", "reason"),
    _family(
        "peerlane_sweep_age_seconds", "gauge", "Time since the last sweep told how far it is, or that it has ended."
    ),
    _family("peerlane_sweep_missed_peers", "gauge", "Stale peers that the last sweep failed to remove."),
    _family("peerlane_reconciliations_total", "counter", "Reconciliations by how they ended.", "outcome"),
    _family(
        "peerlane_drift_total", "counter", "Differences between device and Redis that reconciliations found.", "kind"
    ),
    _family("peerlane_reconciliation_age_seconds", "gauge", "Time since the last reconciliation."),
    _family("peerlane_traffic_bytes_total", "counter", "Bytes received from peers and sent to them.", "direction"),
    _family("peerlane_observer_read_seconds", "gauge", "How long the last reading of the device's counters took."),
)
#: With --per-peer: the names of prometheus_wireguard_exporter.
PER_PEER = (
    _family("wireguard_sent_bytes_total", "counter", "Bytes sent to the peer.", "interface", "public_key"),
    _family("wireguard_received_bytes_total", "counter", "Bytes received from the peer.", "interface", "public_key"),
    _family(
        "wireguard_latest_handshake_seconds",
        "gauge",
        "When the peer's last handshake was noticed, in seconds since 1970.",
        "interface",
        "public_key",
    ),
)
