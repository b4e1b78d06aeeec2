"""``peerlane``: the client's commands, and those that run on a gateway. Loads pyroute2 for none of its help."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from tasks.cli.acl import acl
from tasks.cli.gateway import gateway
from tasks.cli.parameters import GatewayName
from tasks.cli.peer import peer
from tasks.cli.program import Program, Told
from tasks.cli.session import Session, pass_session
from tasks.cli.top import top
from workers.cli_doctor import doctor
from workers.cli_functions import functions

LEVELS = ("debug", "info", "warning", "error")


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--redis", "redis_url", metavar="URL", help="redis://, rediss:// or unix:///path; see PEERLANE_REDIS_URL."
)
@click.version_option(package_name="peerlane", message="%(prog)s %(version)s")
@pass_session
def main(session: Session, redis_url: str | None) -> None:
    """WireGuard peers for a fleet of gateways: one lane and one writer per gateway.

    Settings come from PEERLANE_* variables or /etc/peerlane/peerlane.toml. Exit status: 0 done, 1 refused or failed,
    2 usage, 3 timed out, unavailable or unknown.
    """
    if redis_url is not None:
        session.overrides["redis_url"] = redis_url


main.add_command(acl)
main.add_command(doctor)
main.add_command(functions)
main.add_command(gateway)
main.add_command(peer)
main.add_command(top)


@gateway.command()
@click.argument("name", type=GatewayName())
@click.option("--interface", metavar="DEVICE", help="WireGuard device, made if it is not there.  [default: wg0]")
@click.option("--dataplane", type=click.Choice(["auto", "kernel", "memory"]), help="memory keeps no tunnel: for tests.")
@click.option("--pool", "pools", multiple=True, metavar="PREFIX", help="Peers get addresses from it; repeatable.")
@click.option("--serves", multiple=True, metavar="PREFIX", help="Peers may ask for prefixes in it; repeatable.")
@click.option("--endpoint", metavar="HOST:PORT", help="What clients dial.  [default: this host's name]")
@click.option("--listen-port", type=click.IntRange(1, 65535), help="UDP port of the device.  [default: 51820]")
@click.option("--private-key-file", type=click.Path(path_type=Path), help="Made with mode 0600 if it is not there.")
@click.option("--user", metavar="NAME", help="Whom to become where root starts it; keeps CAP_NET_ADMIN.")
@click.option("--redis", "redis_url", metavar="URL", help="redis://, rediss:// or unix:///path.")
@click.option(
    "--require-durable/--no-require-durable",
    default=None,
    help="Refuse a Redis that could lose what it confirms.  [default: warn]",
)
@click.option("--only", type=click.Choice(["writer", "observer"]), help="One of the two processes, on its own.")
@click.option("--loglevel", type=click.Choice(LEVELS), default="info", show_default=True)
@pass_session
def run(session: Session, name: str, only: str | None, loglevel: str, **options: Any) -> None:
    """Run a gateway's writer and observer, in the foreground, until SIGTERM or Ctrl-C.

    Each is started again if it dies. Alone they are the same as `celery -A workers.gateway worker` and
    `celery -A workers.observer worker` with PEERLANE_GATEWAY=NAME. What is not said here comes from the settings.
    """
    session.overrides |= {"gateway": name} | {key: value for key, value in options.items() if value not in (None, ())}
    settings = session.settings
    if only is None:
        from workers.privileges import confine_gateway

        confine_gateway(settings)
        raise Told(_run_both(name, session.overrides, loglevel))
    _quiet_noise(loglevel)
    if only == "observer":
        from workers.observer import ObserverApp

        worker = ObserverApp(settings).Worker(loglevel=loglevel, quiet=True)
        worker.start()
        raise Told(int(worker.exitcode or 0))
    from workers.gateway import GatewayApp

    bar = _RecoveryBar()
    worker = GatewayApp(settings, progress=bar).Worker(loglevel=loglevel, quiet=True)
    worker.start()
    bar.close()
    raise Told(int(worker.exitcode or 0))


@main.command()
@click.option("--peers", type=click.IntRange(10, 50_000), default=1000, show_default=True, help="How many to create.")
@click.option("--gateways", "count", type=click.IntRange(1, 8), default=2, show_default=True, help="How many to start.")
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
@click.option("--flower/--no-flower", default=True, help="Start Flower too, if it is installed.")
@pass_session
def demo(session: Session, peers: int, count: int, *, keep: bool, flower: bool) -> None:
    """Everything on this machine: a server, gateways, beat, Flower; then it ends by itself.

    Needs no root, no Redis and no WireGuard, and uses the kernel's WireGuard where it may.
    """
    from workers.demo import run_demo

    run_demo(session.output, peers=peers, count=count, keep=keep, flower=flower)


def _run_both(name: str, overrides: Mapping[str, Any], loglevel: str) -> int:
    """Writer and observer, each a process of its own; what the command line says reaches them as variables."""
    from workers.supervise import Part, observer_is_final, supervise, writer_is_final

    logging.basicConfig(level=loglevel.upper(), format="[%(asctime)s: %(levelname)s/gateway run] %(message)s")
    told = {
        f"PEERLANE_{key.upper()}": ",".join(map(str, cast("tuple[Any, ...]", value)))
        if isinstance(value, tuple)
        else str(value)
        for key, value in overrides.items()
    }
    command = [sys.executable, "-m", "workers.cli", "gateway", "run", name, "--loglevel", loglevel, "--only"]
    parts = [
        Part("writer", [*command, "writer"], writer_is_final),
        Part("observer", [*command, "observer"], observer_is_final),
    ]
    return supervise(parts, {**os.environ, **told})


def _quiet_noise(loglevel: str) -> None:
    # A gateway needs CAP_NET_ADMIN, so root is its normal user; and it takes no pickle, which the warning is about.
    from celery.exceptions import SecurityWarning

    warnings.filterwarnings("ignore", category=SecurityWarning)
    if loglevel != "debug":
        # One line per request, at thousands a second; refusals are their callers' business.
        logging.getLogger("celery.app.trace").setLevel(logging.WARNING)


class _RecoveryBar:
    """The recovery's progress: a bar on a terminal, a line now and then in a log."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        # Not sys.stderr: Celery turns what is written there into log lines.
        self._console = Console(file=sys.__stderr__)
        self._progress = Progress(console=self._console, transient=True)
        self._task: Any = None
        self._tenth = 0

    def __call__(self, done: int, total: int) -> None:
        if not self._console.is_terminal:
            if (tenth := done * 10 // max(total, 1)) != self._tenth or done == total:
                self._tenth = tenth
                logging.getLogger(__name__).info("recovering: %d of %d changes made", done, total)
            return
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("recovering", total=total)
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


if __name__ == "__main__":
    main()
