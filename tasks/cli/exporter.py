"""``peerlane exporter``: serves the fleet's metrics to Prometheus over HTTP, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from typing import Any

import click

from peerlane.config.redis.client import connect
from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.exporter.collector import FleetCollector, MetricsServer


class Address(click.ParamType[tuple[str, int]]):
    """``HOST:PORT``, the host in brackets where it is an IPv6 address."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        host, colon, port = str(value).rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not (port.isascii() and port.isdigit()) or int(port[:6]) > 65535:
            self.fail(f"{value!r} is no HOST:PORT, as 127.0.0.1:9471 or [::1]:9471", param, ctx)
        return host, int(port)


@click.command("exporter", cls=Command)
@click.option(
    "--listen", type=Address(), default="127.0.0.1:9471", show_default=True, metavar="HOST:PORT", help="Where to serve."
)
@click.option("--per-peer", is_flag=True, help="Series for each peer too: traffic and the last handshake.")
@pass_session
def exporter(session: Session, listen: tuple[str, int], *, per_peer: bool) -> None:
    """Tell Prometheus what gateways tell in Redis, over HTTP, until SIGTERM or Ctrl-C.

    Any number may run; none writes anything, and gateways open no port. Whoever reaches the address reads the metrics:
    keep it on loopback or behind a proxy. While Redis is away the answer is peerlane_redis_up 0.
    """
    session.start_log("exporter")
    ended = threading.Event()

    def end(*_: Any) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    redis = connect(session.settings)
    server = MetricsServer(FleetCollector(redis, per_peer=per_peer), *listen)
    host = f"[{listen[0]}]" if ":" in listen[0] else listen[0]
    url = f"http://{host}:{server.port}/metrics"
    if session.output.json:
        session.output.document({"url": url})
    else:
        session.output.note(f"serving {url} until Ctrl-C")
    ended.wait()
    server.stop()
    redis.close()
