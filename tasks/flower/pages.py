"""Peerlane's pages in Flower: Gateways, for people and programs, and a health check that includes Redis.

The broker page and the lengths of queues are Flower's, but read with Peerlane's connections. Flower 2.2 would make its
own client from kombu's URL, without the user and the database of a unix socket, and without Sentinels.
"""

from __future__ import annotations

from typing import Any

from flower.api.tasks import GetQueueLengths
from flower.views import BaseHandler
from flower.views.broker import BrokerView
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, authenticated, url

from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.flower.fleet_view import FleetView
from peerlane.tasks.flower.gateway_table import COLUMNS, as_document, cells, sentences, summary

# They carry no types.
_BaseHandler: Any = BaseHandler
_BrokerView: Any = BrokerView
_GetQueueLengths: Any = GetQueueLengths


def handlers(prefix: str) -> list[url]:
    """The handlers that come before Flower's own, below its prefix if it has one."""
    start = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
    return [
        url(f"{start}/gateways", GatewaysPage, name="gateways"),
        url(f"{start}/healthcheck", HealthCheck),
        url(f"{start}/broker", BrokerPage, name="broker"),
        url(f"{start}/api/queues/length", QueueLengths),
    ]


class _FleetHandler(_BaseHandler):
    @property
    def fleet(self) -> FleetView:
        """What the application has read last."""
        return self.application.fleet


class GatewaysPage(_FleetHandler):
    """The fleet, the most urgent gateway first; ``?json=1`` for programs. Behind Flower's password."""

    @authenticated
    async def get(self) -> None:
        """Show the last look, which is at most a few seconds old."""
        look = self.fleet.last
        if self.get_argument("json", default=False, type=bool):
            self.write(as_document(look, self.fleet.trouble))
            return
        self.render(
            "gateways.html",
            columns=COLUMNS,
            rows=[cells(row) for row in look.rows] if look is not None else [],
            summary=summary(look),
            sentences=sentences(look) if look is not None else [],
        )


class HealthCheck(_FleetHandler):
    """The health check, without a password as Flower's own. It says only whether Redis has answered the last look."""

    async def get(self) -> None:
        """200 while Redis answers, 503 otherwise."""
        self.set_header("Content-Type", "text/plain")
        if self.fleet.healthy:
            self.write("OK")
            return
        self.set_status(503)
        self.write("Redis does not answer")


class LaneLengths:
    """Replaces Flower's broker object: returns the lengths of queues."""

    def __init__(self, fleet: FleetView) -> None:
        self._fleet = fleet

    async def queues(self, names: list[str]) -> list[dict[str, Any]]:
        """Each queue with its length; the page answers 503 if Redis cannot be read."""
        try:
            lengths = await IOLoop.current().run_in_executor(None, self._fleet.lengths, names)
        except PeerlaneError as error:
            raise HTTPError(503, "%s", error.message, reason="Redis cannot be read") from error
        return [{"name": name, "messages": length} for name, length in lengths.items()]


class LaneTable(LaneLengths):
    """The same for people: also how many may be taken, and how many live processes take them."""

    async def queues(self, names: list[str]) -> list[dict[str, Any]]:
        """Each queue as a line of the page."""
        consumers = self._fleet.consumers()
        return [
            {**queue, "messages_ready": queue["messages"], "consumers": consumers[queue["name"]]}
            for queue in await super().queues(names)
        ]


class BrokerPage(_BrokerView):
    """The page with the lengths of all lanes."""

    def get_broker(self) -> LaneTable:
        """Flower asks it for queues."""
        return LaneTable(self.application.fleet)


class QueueLengths(_GetQueueLengths):
    """The lengths of all lanes for programs."""

    def get_broker(self) -> LaneLengths:
        """Flower asks it for queues."""
        return LaneLengths(self.application.fleet)
