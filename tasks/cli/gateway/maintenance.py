"""``peerlane gateway sweep | reconcile``, and how a gateway's condition is shown."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from peerlane.tasks.admin import maintenance as upkeep
from peerlane.tasks.cli.parameters import GatewayName, Seconds
from peerlane.tasks.cli.program import Command, Told
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.cli.tables import span
from peerlane.tasks.status.gateway_status import OBSERVER_LIVE_FOR_MS, Condition, read_condition

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
def sweep(session: Session, name: str, timeout: float, *, dry_run: bool, force: bool) -> None:
    """Remove a gateway's stale peers: expired, never handshaked, or idle for too long.

    Beat asks for this all the time. Where a sweep was refused, by an alarm, --force carries it out.
    """
    report = upkeep.sweep(session.app, name, dry_run=dry_run, force=force, timeout=timeout)
    if session.output.json:
        session.output.document(report)
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
def reconcile(session: Session, name: str, timeout: float, *, dry_run: bool) -> None:
    """Compare a gateway's device with Redis, and mend what differs by the smallest change."""
    report = upkeep.reconcile(session.app, name, dry_run=dry_run, timeout=timeout)
    if session.output.json:
        session.output.document(report)
    elif report["outcome"] == "skipped":
        session.output.note(f"{name}: {report['note']}")
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
    """Say why it was refused or stopped, and end with the status for that."""
    if refusal := report.get("refusal"):
        which = "a sweep would be refused" if report["outcome"] == "listed" else "refused"
        session.output.warn(f"{which}: {refusal['message']}")
    if stopped := report.get("stopped"):
        session.output.warn(f"stopped before its end: {stopped['message']}")
    if report["outcome"] == "refused" or stopped:
        raise Told(1)


def _show_victims(session: Session, report: Mapping[str, Any]) -> None:
    victims = report["victims"]
    if not victims:
        session.output.show(f"nothing is stale among {report['peers']:,} peers")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("public key", no_wrap=True, min_width=44)
    table.add_column("why", no_wrap=True)
    now = read_condition(session.app, report["gateway"]).now
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


def condition_facts(found: Condition) -> dict[str, object]:
    """A gateway's condition, for ``gateway show``."""
    return {
        "recovery": f"{found.recovered} changes made" if found.recovered else None,
        "observer": _observer(found),
        "counters": _reading(found),
        "last sweep": _last(found, found.sweep, ("removed", "stale")),
        "last reconcile": _last(found, found.reconcile, ("mended", "found")),
        **{f"ALARM {alarm.kind}": _alarm(found, alarm.message, alarm.since) for alarm in found.alarms},
    }


def _alarm(found: Condition, message: str, since: int) -> Text:
    return Text(f"{message} (for {span(max(0, found.now - since))})", "red")


def _observer(found: Condition) -> Text:
    if found.observer_silent_for is None:
        return Text("none", "yellow")
    if found.observer_silent_for * 1000 > OBSERVER_LIVE_FOR_MS:
        return Text(f"silent for {span(found.observer_silent_for)}", "red")
    return Text("alive", "green")


def _reading(found: Condition) -> str | None:
    if not found.reading:
        return None
    ago = span(max(0, found.now - int(found.reading.get("at", 0))))
    if trouble := found.reading.get("trouble"):
        return f"not read {ago} ago: {trouble}"
    return f"of {found.reading.get('peers', 0):,} peers, read {ago} ago in {found.reading.get('seconds', 0):g} s"


def _last(found: Condition, report: Mapping[str, Any], fields: tuple[str, str]) -> str | None:
    if not report:
        return None
    ago = span(max(0, found.now - int(report.get("at", 0))))
    if report.get("outcome") == "running":
        return f"running: {', '.join(f'{n} {v:,}' for n, v in report.items() if isinstance(v, int) and n != 'at')}"
    done: dict[str, int] = report.get(fields[0]) or {}
    seen: dict[str, int] = report.get(fields[1]) or {}
    counted = _counts(done) or (f"nothing of {_counts(seen)}" if seen else "nothing")
    return f"{report.get('outcome')} {ago} ago: {counted} {fields[0]}"
