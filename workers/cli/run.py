"""``peerlane gateway run``: a gateway's writer and observer in the foreground; reports how they end."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from peerlane.config.settings import DataPlaneKind, Settings
from peerlane.tasks.cli.output import as_document
from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Command, Exit
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.errors import Fenced, LaneHeld, PeerlaneError, WriterError

if TYPE_CHECKING:  # each is loaded where it is needed
    from rich.progress import Progress

    from peerlane.config.celery.app import PeerlaneApp

LEVELS = ("debug", "info", "warning", "error")


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@click.option("--interface", metavar="DEVICE", help="WireGuard device, made if it is not there.  [default: wg0]")
@click.option("--dataplane", type=click.Choice(get_args(DataPlaneKind)), help="memory keeps no tunnel: for tests.")
@click.option("--pool", "pools", multiple=True, metavar="PREFIX", help="Peers get addresses from it; repeatable.")
@click.option("--serves", multiple=True, metavar="PREFIX", help="Peers may ask for prefixes in it; repeatable.")
@click.option("--endpoint", metavar="HOST:PORT", help="What clients dial.  [default: this host's name]")
@click.option("--listen-port", type=click.IntRange(1, 65535), help="UDP port of the device.  [default: 51820]")
@click.option("--private-key-file", type=click.Path(path_type=Path), help="Made with mode 0600 if it is not there.")
@click.option(
    "--accept-new-key",
    is_flag=True,
    default=None,
    help="Start with another key than the one that clients were given; raises an alarm until you clear it.",
)
@click.option("--user", metavar="NAME", help="Whom to become where root starts it; keeps CAP_NET_ADMIN.")
@click.option("--redis", "redis_url", metavar="URL", help="redis://, rediss:// or unix:///path.")
@click.option(
    "--require-durable/--no-require-durable",
    default=None,
    help="Refuse a Redis that could lose what it confirms.  [default: warn]",
)
@click.option("--only", type=click.Choice(["writer", "observer"]), help="One of the two processes, on its own.")
@click.option(
    "--pulse", type=int, hidden=True, help="Descriptor on which a supervisor is told that the process goes on."
)
@click.option("--await-redis", is_flag=True, hidden=True, help="Wait for Redis where it is away at the start.")
@click.option("--loglevel", type=click.Choice(LEVELS), help="[default: PEERLANE_LOG_LEVEL, or info]")
@pass_session
def run(
    session: Session,
    name: str,
    only: str | None,
    loglevel: str | None,
    pulse: int | None,
    *,
    await_redis: bool,
    **options: Any,
) -> None:
    """Run a gateway's writer and observer, in the foreground, until SIGTERM or Ctrl-C.

    Each is started again if it dies. Alone they are the same as `celery -A peerlane.workers.gateway worker` and
    `celery -A peerlane.workers.observer worker` with PEERLANE_GATEWAY=NAME. What is not given here comes from the
    settings.

    While Redis is away it tries again, without end. With --json the first start that fails ends it, with one document:
    the caller decides when to try again.
    """
    options |= {"gateway": name, "log_level": loglevel}
    session.overrides |= {key: value for key, value in options.items() if value not in (None, ())}
    settings = session.settings
    loglevel = settings.log_level or "info"
    if not session.output.json:
        session.start_log(only or "gateway run", loglevel)
    if pulse is not None:
        _be_watched(pulse)
    if only is not None:
        status, lane_is_held = _run_one(session, settings, only, loglevel, awaits_redis=await_redis)
        raise Exit(_supervised_status(status, lane_held=lane_is_held) if pulse is not None else status)
    from peerlane.tasks.wire.psk_cipher import cipher_of
    from peerlane.workers.dataplane.factory import open_plane
    from peerlane.workers.host.privileges import confine_gateway

    confine_gateway(settings.user, on_host=open_plane(settings).on_host)
    cipher_of(settings)  # settings that both would refuse are reported once
    raise Exit(_run_both(session, settings, loglevel))


def _be_watched(pulse: int) -> None:
    """Report to the supervisor, and print all stacks at SIGABRT, by which it ends a process that hangs.

    The supervisor logs them. No core file is written: it would hold keys.
    """
    import faulthandler
    import resource

    from peerlane.workers.host.pulse import PULSE

    PULSE.tell_by(pulse)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    # 1 keeps the kernel from handing it to a program as well (core(5)); a user that may only have 0 has that.
    least = 0 if most == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (least, least))
    faulthandler.enable(pulse)


def _supervised_status(status: int, *, lane_held: bool) -> int:
    """The exit status of a supervised process."""
    from peerlane.workers.host.parts import HELD

    return HELD if status and lane_held else status


def _run_one(
    session: Session, settings: Settings, which: str, loglevel: str, *, awaits_redis: bool
) -> tuple[int, bool]:
    """Run one of the two until it ends; returns its exit status, and whether its lane or device is another's."""
    _quiet_noise(loglevel)
    bar = _RecoveryBar()
    app = _app(settings, which, bar)
    # Celery turns what is printed from here on into log lines.
    streams = sys.stdout, sys.stderr
    if session.output.json:
        sys.__stdout__ = sys.__stderr__  # type: ignore[misc] - Celery says there that it ends; a program reads the document
    worker = cast("Any", app.Worker(loglevel=loglevel, quiet=True))
    worker.awaits_redis = awaits_redis
    worker.start()
    bar.close()
    sys.stdout, sys.stderr = streams
    status = int(worker.exitcode or 0)
    if status and session.output.json:
        session.output.error(as_document(worker.refusal or _why_it_ended(worker, which, status)))
    elif session.output.json:
        session.output.document(_ended(settings))
    lane_held = isinstance(worker.refusal or _why_it_ended(worker, which, status), LaneHeld | Fenced)
    return status, which == "writer" and lane_held


def _app(settings: Settings, which: str, progress: Callable[[int, int], None]) -> PeerlaneApp:
    """One of the two apps; the other one's modules are not loaded."""
    if which == "observer":
        from peerlane.workers.observer import ObserverApp

        return ObserverApp(settings)
    from peerlane.workers.gateway import GatewayApp

    return GatewayApp(settings, progress=progress)


def _why_it_ended(worker: Any, which: str, status: int) -> PeerlaneError:
    writer = getattr(worker.service, "writer", None)
    if writer is not None and writer.fenced:
        return Fenced("a newer writer has taken over; this one has ended")
    return WriterError(f"the {which} ended with status {status}; its log has the details")


def _ended(settings: Settings) -> dict[str, object]:
    return {"gateway": settings.gateway, "outcome": "ended"}


def _run_both(session: Session, settings: Settings, loglevel: str) -> int:
    """Run writer and observer as two processes; options of the command line reach them as variables."""
    from peerlane.workers.host.parts import Part, observer_is_final, writer_is_final
    from peerlane.workers.host.supervisor import supervise

    if session.output.json:
        session.start_log("gateway run", loglevel)
    # -P: nothing is imported from the working directory, which other users may write to.
    command = [sys.executable, "-P", "-m", "peerlane.workers.cli"]
    command += ["gateway", "run", str(settings.gateway), "--loglevel", loglevel]
    command += ["--json"] if session.output.json else ["--await-redis"]
    parts = [
        Part("writer", [*command, "--only", "writer"], writer_is_final, decides=True, watched=True),
        # On a host with one processor it would take half of it from the writer's start.
        Part("observer", [*command, "--only", "observer"], observer_is_final, watched=True, needed=False, follows=True),
    ]
    environment = {**os.environ, **_as_variables(session.overrides)}
    if not session.output.json:
        return supervise(parts, environment)
    heard: list[str] = []
    status = supervise(parts, environment, hear=lambda said: heard.append(said.decode(errors="replace")))
    if any(said.strip() for said in heard):
        session.output.lines(heard[-1])
    elif status:
        lost = WriterError(f"the gateway ended with status {status}; its log has the details")
        session.output.error(as_document(lost))
    else:
        session.output.document(_ended(settings))
    return status


def _as_variables(overrides: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"PEERLANE_{key.upper()}": ",".join(map(str, cast("tuple[Any, ...]", value)))
        if isinstance(value, tuple)
        else str(value)
        for key, value in overrides.items()
    }


def _quiet_noise(loglevel: str) -> None:
    # A gateway needs CAP_NET_ADMIN, so root is its normal user; and it takes no pickle, which the warning is about.
    # When a connection breaks, Celery warns at length about a setting; the outage has a line of its own.
    from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

    for noise in (SecurityWarning, CPendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=noise)
    if loglevel != "debug":
        # One line per request, at thousands a second; refusals reach their callers.
        logging.getLogger("celery.app.trace").setLevel(logging.WARNING)


class _RecoveryBar:
    """The recovery's progress: a bar on a terminal, lines in a log."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: Any = None
        self._tenth = 0

    def __call__(self, done: int, total: int) -> None:
        # Not sys.stderr: Celery turns what is written there into log lines.
        if sys.__stderr__ is None or not sys.__stderr__.isatty():
            if (tenth := done * 10 // max(total, 1)) != self._tenth or done == total:
                self._tenth = tenth
                logging.getLogger(__name__).info("recovering: %d of %d changes made", done, total)
            return
        if self._progress is None:
            self._progress = self._begun(total)
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self.close()

    def _begun(self, total: int) -> Progress:
        from rich.console import Console
        from rich.progress import Progress

        bar = Progress(console=Console(file=sys.__stderr__), transient=True)
        bar.start()
        self._task = bar.add_task("recovering", total=total)
        return bar

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
