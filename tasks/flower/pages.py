"""The pages that Flower gets: Gateways, for people and programs, and a health check that knows of Redis."""

from __future__ import annotations

from typing import Any

from flower.views import BaseHandler
from tornado.web import authenticated, url

from peerlane.tasks.flower.fleet_view import FleetView
from peerlane.tasks.flower.gateway_table import COLUMNS, as_document, cells, sentences, summary

_BaseHandler: Any = BaseHandler  # it carries no types


def handlers(prefix: str) -> list[url]:
    """What is served before Flower's own paths, below its prefix if it has one."""
    start = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
    return [
        url(f"{start}/gateways", GatewaysPage, name="gateways"),
        url(f"{start}/healthcheck", HealthCheck),
    ]


class _FleetHandler(_BaseHandler):
    @property
    def fleet(self) -> FleetView:
        """What the application has read last."""
        return self.application.fleet


class GatewaysPage(_FleetHandler):
    """The fleet, the gateway in most trouble first; ``?json=1`` for programs. Behind Flower's password."""

    @authenticated
    async def get(self) -> None:
        """As of the last look, which is a few seconds old."""
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
    """Open to all, as Flower's own: so it says no more than whether Redis has answered, and asks nothing itself."""

    async def get(self) -> None:
        """200 while Redis answers, 503 otherwise."""
        self.set_header("Content-Type", "text/plain")
        if self.fleet.healthy:
            self.write("OK")
            return
        self.set_status(503)
        self.write("Redis does not answer")
