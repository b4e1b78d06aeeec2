"""kombu's Redis transport without its tables of bindings: every queue is bound to the exchange of its own name.

kombu stores in Redis which queues an exchange leads to, and every publisher reads that table. Peerlane sends to queues
by name and needs no table. So no program can redirect messages by writing to it, a publisher needs only the right to
LPUSH, and Flower needs no right to write (kombu would maintain the table of its event queue by Lua scripts).
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.connection import ConnectionPool
from kombu.transport import redis as kombu_redis

from peerlane.config.redis.connections import noticing

_Channel: Any = kombu_redis.Channel  # kombu carries no types for its channel


class UnboundChannel(_Channel):
    """A channel that neither writes nor reads bindings."""

    def _queue_bind(self, exchange: str, routing_key: str | None, pattern: str | None, queue: str) -> None:
        # What a fanout exchange (events) needs to know is only for this channel.
        if self.typeof(exchange).type == "fanout":
            self._fanout_queues[queue] = (exchange, (routing_key or "").replace("#", "*"))

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - kombu's signature
        parameters = cast("dict[str, Any]", super()._connparams(asynchronous=asynchronous))
        options = self.connection.client.transport_options
        return parameters | {
            "connection_class": noticing(parameters["connection_class"]),
            "sentinels": options.get("sentinels"),
        }

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """The one queue of an exchange: the queue of the same name."""
        return [(exchange, "", exchange)]

    def maybe_refresh_binding_expiry(self) -> None:
        """Does nothing: there is no table whose lifetime to extend."""

    def _delete(self, queue: str, *args: Any, **options: Any) -> None:
        # Called for queues of events, whose messages were never stored.
        self.auto_delete_queues.discard(queue)


class UnboundTransport(kombu_redis.Transport):
    """The transport of every process that only sends, and of Flower."""

    Channel = UnboundChannel

    def heartbeat_check(self, connection: Any, rate: int = 2) -> None:
        """Each second in which no event comes: drop a subscription whose server has vanished without closing it.

        kombu looks only where an event loop runs; Flower has none for events, and would listen for ever.
        """
        del connection, rate
        cast("Any", self).cycle.maybe_check_subclient_health()


class OwnConnection(Connection):
    """Uses Peerlane's transport for every URL scheme: kombu accepts no transport class in the URL of a unix socket."""

    own_transport: ClassVar[type[kombu_redis.Transport]] = UnboundTransport

    def get_transport_cls(self) -> type[kombu_redis.Transport]:
        return self.own_transport

    def Pool(self, limit: int | None = None, **_: Any) -> ConnectionPool:  # noqa: N802 - kombu's name
        return _OwnPool(self, limit)


class _OwnPool(ConnectionPool):
    """A pool whose connections use the same transport."""

    def new(self) -> Connection:
        made = super().new()
        made.get_transport_cls = self.connection.get_transport_cls
        return made


class OwnMessaging(AMQP):
    """Celery's AMQP with that connection; peerlane.config.celery.app names it for clients, beat and Flower."""

    Connection = OwnConnection
