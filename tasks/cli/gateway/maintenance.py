"""``peerlane gateway sweep | reconcile``, and how a gateway's status is shown."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from peerlane.tasks.admin import maintenance
from peerlane.tasks.admission.lane_state import number
from peerlane.tasks.cli.interrupts import ended_as_by_ctrl_c
from peerlane.tasks.cli.parameters import GatewayName, Seconds
from peerlane.tasks.cli.program import Command, Exit
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.cli.tables import span
from peerlane.tasks.cli.top.columns import NEARLY_FULL
from peerlane.tasks.status.alarms import Alarm
from peerlane.tasks.status.fleet_snapshot import read_gateway
from peerlane.tasks.status.gateway_status import GatewayStatus, missed_count
from peerlane.tasks.values.metrics import counts as words_counted
from peerlane.tasks.values.metrics import number as measured

#: Rows of a table for people; --json gives all that the gateway listed.
ROWS = 200

_WHY = {"expired": "expired", "never": "never handshaked, made", "idle": "last seen"}

_timeout = click.option(
    "--timeout",
    type=Seconds(0, 3600, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait; then it is told to stop.",
)


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@click.option("--dry-run", is_flag=True, help="List what would go and why; remove nothing.")
@click.option("--force", is_flag=True, help="Remove even so many; believe Redis' clock, whatever it has done.")
@_timeout
@pass_session
@ended_as_by_ctrl_c()
def sweep(session: Session, name: str, timeout: float, *, dry_run: bool, force: bool) -> None:
    """Remove a gateway's stale peers: expired, never handshaked, or idle for too long.

    Beat asks for this all the time. Where a sweep was refused, by an alarm, --force carries it out.
    """
    report = maintenance.sweep(session.app, name, dry_run=dry_run, force=force, timeout=timeout)
    if session.output.json:
        session.output.document(report)
    elif report["outcome"] == "skipped":
        session.output.warn(f"{name}: nothing was swept: {report['note']}")
    elif dry_run:
        _show_victims(session, report)
    else:
        session.output.show(f"{name}: {_counts(report['removed']) or 'no'} peers removed of {report['peers']:,}")
        if report["kept"]:
            session.output.note(f"kept after all: {_counts(report['kept'])}")
    _end(session, report)


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@click.option("--dry-run", is_flag=True, help="List what differs; mend nothing.")
@_timeout
@pass_session
@ended_as_by_ctrl_c()
def reconcile(session: Session, name: str, timeout: float, *, dry_run: bool) -> None:
    """Compare a gateway's device with Redis, and mend what differs by the smallest change."""
    report = maintenance.reconcile(session.app, name, dry_run=dry_run, timeout=timeout)
    if session.output.json:
        session.output.document(report)
    elif report["outcome"] == "skipped":
        session.output.warn(f"{name}: nothing was compared: {report['note']}")
    elif not report["found"]:
        session.output.show(f"{name}: device and Redis agree")
    else:
        session.output.show(f"{name}: differing: {_counts(report['found'])}")
        for wrong in report["device"]:
            session.output.show(f"  {wrong}")
        if dry_run:
            _show_drifts(session, report)
        else:
            session.output.show(f"mended: {_counts(report['mended']) or 'nothing'}")
    if held_back := report.get("held_back"):
        session.output.warn(f"unknown peers are left alone: {held_back}")
    _end(session, report)


def _end(session: Session, report: Mapping[str, Any]) -> None:
    """Say why it was refused or stopped, and exit with the status for that; also if nothing was done."""
    if refusal := report.get("refusal"):
        which = "a sweep would be refused" if report["outcome"] == "listed" else "refused"
        session.output.warn(f"{which}: {refusal['message']}")
    if stopped := report.get("stopped"):
        session.output.warn(f"stopped before its end: {stopped['message']}")
    if report["outcome"] in ("refused", "skipped") or stopped:
        raise Exit(1)


def _show_victims(session: Session, report: Mapping[str, Any]) -> None:
    victims = report["victims"]
    if not victims:
        session.output.show(f"nothing is stale among {report['peers']:,} peers")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("public key", no_wrap=True, min_width=44)
    table.add_column("why", no_wrap=True)
    now = read_gateway(session.app, report["gateway"]).now
    for victim in islice(victims, ROWS):
        table.add_row(victim["public_key"], f"{_WHY[victim['reason']]} {span(now - victim['since'])} ago")
    session.output.show(table)
    more = len(victims) + report["unlisted"] - ROWS
    if more > 0:
        session.output.note(f"and {more:,} more")
    session.output.show(f"{_counts(report['stale'])} of {report['peers']:,} would be removed")


def _show_drifts(session: Session, report: Mapping[str, Any]) -> None:
    for drift in islice(report["drifts"], ROWS):
        session.output.show(f"  {drift['kind'].replace('_', ' '):<15} {drift['subject']}")
    more = len(report["drifts"]) + report["unlisted"] - ROWS
    if more > 0:
        session.output.note(f"and {more:,} more")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


def status_facts(status: GatewayStatus) -> dict[str, object]:
    """A gateway's status, for ``gateway show``."""
    if not status.visible:
        return {"alarms": Text("with the observer and sweeps, not for this Redis user to see", "yellow")}
    messages = "1 message" if status.set_aside == 1 else f"{status.set_aside or 0:,} messages"
    set_aside = f"{messages}: see `peerlane gateway poison {status.gateway}`"
    return {
        "lane": _lane(status),
        "answered": _answered(status),
        "recovery": _recovery(status),
        "observer": _observer(status),
        "beat": _beat(status),
        "counters": _reading(status),
        "last sweep": _last(status, status.sweep, ("removed", "stale")),
        "last reconcile": _last(status, status.reconcile, ("mended", "found")),
        "set aside": Text(set_aside, "yellow") if status.set_aside else None,
        **{f"ALARM {alarm.kind}": _alarm(status, alarm) for alarm in status.alarms},
    }


def _recovery(status: GatewayStatus) -> object:
    if status.recovering:
        return Text(f"{status.recovering:,} peers are still to be added to the device", "yellow")
    if status.lane.state == "recovering" and not status.recovered:
        return f"{status.loaded} peers read" if status.loaded else None
    return f"{status.recovered} changes made" if status.recovered else None


def _lane(status: GatewayStatus) -> Text:
    """The requests that wait, how many may, and the age of the oldest; red where requests are refused."""
    lane = status.lane
    share = max(lane.waiting, lane.waiting_bulk) / max(1, lane.cap)
    oldest = max((status.oldest_for(bulk=bulk) or 0.0) for bulk in (False, True))
    waited = f"; the oldest has waited for {span(oldest)}" if oldest >= 1 else ""
    style = "red" if share >= 1 else "yellow" if share >= NEARLY_FULL else ""
    return Text(f"{lane.cap:,} may wait in each of its queues, {share:.0%} do{waited}", style)


def _answered(status: GatewayStatus) -> str | None:
    """The requests answered since the writer began; None for a writer that does not count them."""
    facts = status.lane.facts
    if "answered" not in facts:
        return None
    answered, refused = number(facts["answered"]), number(facts.get("refused", ""))
    return f"{answered:,} requests since its writer began, {refused:,} of them refused"


def _alarm(status: GatewayStatus, alarm: Alarm) -> Text:
    when = f", as of {span(status.ago(alarm.at))} ago" if alarm.at > alarm.since else ""
    return Text(f"{alarm.message} (for {span(status.ago(alarm.since))}{when}); {alarm.runbook}", "red")


def _observer(status: GatewayStatus) -> Text:
    if status.observer_silent_for is None:
        return Text("none", "yellow")
    if not status.observed:
        return Text(f"silent for {span(status.observer_silent_for)}", "red")
    return Text("alive", "green")


def _beat(status: GatewayStatus) -> Text | None:
    if status.beat_silent_for is None:
        return None
    asked = f"last asked {span(status.beat_silent_for)} ago"
    return Text(f"{asked}: is one running?", "red") if status.beat_missing else Text(asked)


def _reading(status: GatewayStatus) -> str | None:
    if not status.reading:
        return None
    ago = span(status.ago(status.reading.get("at")))
    if trouble := status.reading.get("trouble"):
        return f"not read {ago} ago: {trouble}"
    peers, seconds = (measured(status.reading.get(name)) for name in ("peers", "seconds"))
    return f"of {int(peers):,} peers, read {ago} ago in {seconds:g} s"


def _last(status: GatewayStatus, report: Mapping[str, Any], fields: tuple[str, str]) -> Text | None:
    if not report:
        return None
    if report.get("outcome") == "running":
        counts = ", ".join(f"{n} {v:,}" for n, v in report.items() if isinstance(v, int) and n != "at")
        return Text(f"running: {counts}")
    done, planned = (words_counted(report.get(name)) for name in fields)
    counted = _counts(done) or (f"nothing of {_counts(planned)}" if planned else "nothing")
    sentence = f"{report.get('outcome')} {span(status.ago(report.get('at')))} ago: {counted} {fields[0]}"
    why: Any = report.get("stopped") or report.get("refusal")
    failed = bool(why) or missed_count(report) > 0
    reason = f"; {why['message']}" if isinstance(why, dict) and "message" in why else ""
    return Text(f"{sentence}{reason}", "red" if failed else "")
