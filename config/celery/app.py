"""The Celery app and its settings, each with its reason. API hosts, beat and Flower use ``app``.

The figures in the reasons were measured on Celery 5.7 and kombu 5.7.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, cast

import click
from celery import Celery
from celery.signals import import_modules
from celery.utils.imports import symbol_by_name
from kombu import Exchange, Queue

from peerlane.config import names
from peerlane.config.celery.logs import CeleryLogs
from peerlane.config.redis.client import SharedRedis
from peerlane.config.redis.sentinels import sentinels
from peerlane.config.redis.url import celery_url, redis_tls
from peerlane.config.settings import BadSettings, Settings, current

Role = Literal["client", "writer", "observer"]

#: Seconds after which a message that a dead writer had taken is delivered again. Far above the longest request.
VISIBILITY_TIMEOUT = 30


def lane_queues(gateway: str) -> list[Queue]:
    """A lane's queues in the order they are served: interactive first."""
    return [_queue(names.lane_queue(gateway)), _queue(names.bulk_queue(gateway))]


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


def celery_settings(settings: Settings, role: Role, shared: SharedRedis | None = None) -> dict[str, Any]:
    """Celery's settings for one role; ``shared`` is the client of a gateway's process."""
    url = celery_url(settings)
    broker_options: dict[str, Any] = {
        "visibility_timeout": VISIBILITY_TIMEOUT,
        # A new writer takes back what another had taken (workers.lane.unacked); this finds what it could not.
        "unacked_restore_interval": VISIBILITY_TIMEOUT,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 10,  # default 300: a kill during the search would stall recovery
        "priority_steps": [0],  # one list per queue; the order of queues is the priority
        "queue_order_strategy": "priority",  # BRPOP serves keys in order: interactive before bulk
        "socket_timeout": 2,  # a frozen Redis is noticed
        "socket_connect_timeout": 1,
        "socket_keepalive": not url.startswith("redis+socket"),
        "health_check_interval": 5,
        "retry_on_timeout": False,  # would replay LPUSH
        "sentinels": sentinels(settings),  # for our channel (peerlane.config.celery.broker)
        "role": role,  # kombu ignores it, and shares no pool between roles
        "result_ttl": settings.result_ttl,  # for peerlane.workers.lane.broker; kombu ignores it
    }
    settings_of_celery: dict[str, Any] = {
        "broker_url": url,
        "result_backend": f"peerlane.config.celery.result_backend:OwnBackend+{url.removeprefix('redis+')}",
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],  # no pickle, no yaml
        "result_accept_content": ["json"],
        "task_routes": ["peerlane.tasks.wire.registry.route_task"],
        "task_default_queue": "peerlane.unrouted",  # nothing consumes it; every task of ours is routed
        "result_expires": settings.result_ttl,
        "redis_socket_timeout": 2,  # default 120: one GET would hold get(timeout=1) for two minutes
        "redis_socket_connect_timeout": 1,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # come back whenever Redis does
        "task_send_sent_event": False,  # 0.1 ms a publish for nothing that Flower needs
        "worker_enable_remote_control": False,  # it would let every publisher administer workers
        "enable_utc": True,
        "timezone": "UTC",
        "broker_transport_options": broker_options,
    }
    if tls := redis_tls(settings):
        settings_of_celery |= {"broker_use_ssl": tls, "redis_backend_use_ssl": tls}
    if role == "client":
        settings_of_celery |= {
            # A publish that fails may have happened: the client cancels and so settles it. A retry would first
            # reconnect, twice, and took 8 s from a caller of timeout=2 while Redis stood still.
            "task_publish_retry_policy": {"max_retries": 0},
            "result_backend_always_retry": False,  # True let get(timeout=1) take 15 s while Redis was down
            "result_backend_transport_options": {"retry_policy": {"max_retries": 1, "interval_max": 0.1}},
            "redis_socket_timeout": 1,
            "broker_transport_options": broker_options | {"socket_timeout": 1},  # nothing of a client's blocks longer
            "imports": ["peerlane.tasks.lane.tasks"],
            "beat_scheduler": "peerlane.config.celery.schedule:GatewayScheduler",
        }
    else:
        if settings.gateway is None:
            raise BadSettings("PEERLANE_GATEWAY is not set: name the gateway this host serves")
        gateway = settings.gateway
        part = "" if role == "writer" else "_observer"
        broker_options |= {
            # One gateway's taken messages under its own keys: no other gateway can read or forge them.
            "unacked_key": names.unacked_key(gateway, part),
            "unacked_index_key": names.unacked_key(gateway, f"{part}_index"),
            "unacked_mutex_key": names.unacked_key(gateway, f"{part}_mutex"),
            # For peerlane.workers.lane.broker.
            "gateway": gateway,
            "shared_redis": shared or SharedRedis(settings),
        }
        settings_of_celery |= {
            "result_backend": f"peerlane.workers.lane.result_backend:CommitBackend+{url.removeprefix('redis+')}",
            "task_queues": lane_queues(gateway) if role == "writer" else [_queue(names.observer_queue(gateway))],
            "task_create_missing_queues": False,  # a writer serves its own lane and no other
            "worker_pool": "solo",  # the writer is the worker: one process, no threads (docs/adr/0001)
            "worker_concurrency": 1,
            "worker_prefetch_multiplier": 1,  # no duplicates after a reconnect
            # A crash redelivers; the commit record makes that harmless. A sweep is not repeated: the next one comes.
            "task_acks_late": role == "writer",
            "task_acks_on_failure_or_timeout": True,
            "worker_consumer": "peerlane.workers.lane.worker:LaneConsumer",
            "worker_disable_rate_limits": True,
            "worker_send_task_events": True,  # Flower
            "worker_cancel_long_running_tasks_on_connection_loss": False,  # acts on pool children; solo has none
            "worker_soft_shutdown_timeout": 5.0,
            "worker_hijack_root_logger": False,
            "result_backend_always_retry": True,  # False wedged the worker when Redis was away at result time
            "imports": ["peerlane.tasks.lane.tasks"],
        }
    return settings_of_celery


class PeerlaneApp(Celery):
    """A Celery app with Peerlane's settings. Writers and observers run it with ``workers.lane.worker.LaneWorker``."""

    control_cls = "peerlane.tasks.status.inspection:RegistryControl"

    def __init__(self, settings: Settings | None = None, role: Role = "client") -> None:
        """Without ``settings``, the process' settings are read when they are first used."""
        messaging = (
            "peerlane.config.celery.broker:OwnMessaging"
            if role == "client"
            else "peerlane.workers.lane.broker:LaneMessaging"
        )
        super().__init__("peerlane", set_as_current=role != "client", amqp=messaging)
        self.role: Role = role
        self._settings = settings
        self.add_defaults(lambda: celery_settings(self.settings, role, self.shared_redis))
        import_modules.connect(self._prepare_logs, sender=self)
        if role != "client":
            self.Worker = self.subclass_with_self("peerlane.workers.lane.worker:LaneWorker")  # type: ignore[method-assign] - a cached property of Celery

    @cached_property
    def shared_redis(self) -> SharedRedis:
        """The client for all that a gateway's process asks in its main thread."""
        return SharedRedis(self.settings)

    @cached_property
    def AsyncResult(self) -> Any:  # noqa: N802  # pyright: ignore[reportIncompatibleMethodOverride] - Celery's name; cached, as its own is
        """Class of results. For a lane's request id ``get`` cancels the request at its timeout; others are Celery's."""
        return self.subclass_with_self(cast("Any", "peerlane.tasks.lane.result:LaneResult"))

    @cached_property
    def GroupResult(self) -> Any:  # noqa: N802  # pyright: ignore[reportIncompatibleMethodOverride] - likewise
        """The same for a group."""
        return self.subclass_with_self(cast("Any", "peerlane.tasks.lane.celery_manners:LaneGroupResult"))

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - by keyword, as anybody calls it
        """As Celery's; a lane's task is sent by its own ``apply_async``, which calls this method again."""
        if options.get("task_type") is None:
            send_lane_task: Any = symbol_by_name("peerlane.tasks.lane.celery_manners:send_lane_task")
            if (sent := send_lane_task(self, name, args, kwargs, **options)) is not None:
                return sent
        return super().send_task(name, args, kwargs, **options)

    def _prepare_logs(self, **_: Any) -> None:
        """Set up logs when a worker or beat of this app starts, and only then."""
        command = click.get_current_context(silent=True)
        if self.role != "client" or (command is not None and command.info_name == "beat"):
            self._logs = CeleryLogs(self.settings, "beat" if self.role == "client" else self.role)

    @property
    def settings(self) -> Settings:
        """The settings this app was made for."""
        if self._settings is None:
            self._settings = current()
        return self._settings


#: The app of API hosts, beat and Flower.
app = PeerlaneApp()
