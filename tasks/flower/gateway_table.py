"""The content of the Gateways page: columns, cells, sentences, document. Pure; the templates escape it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peerlane.tasks.flower.fleet_view import Look
from peerlane.tasks.status.gateway_status import missed_count, removed_count
from peerlane.tasks.status.rates import Row

#: Share of the peers a gateway may have, or of the requests that may wait, from which on a cell is coloured.
NEARLY, ALMOST = 0.8, 0.95
#: Share of the requests that may wait from which on their limit is shown beside them.
HALF = 0.5

_STATES = {"active": "success", "draining": "warning", "recovering": "warning"}


@dataclass(frozen=True, slots=True)
class Cell:
    """The text of a cell or a sentence; ``colour`` is success, warning or danger, or empty."""

    text: str
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, its meaning, and the function that makes its cells."""

    title: str
    meaning: str
    cell: Callable[[Row], Cell]
    #: Whether its cells are numbers, which stand below each other.
    numbers: bool = False


def cells(row: Row) -> list[Cell]:
    """A gateway's cells, in the order of ``COLUMNS``."""
    return [column.cell(row) for column in COLUMNS]


def summary(look: Look | None) -> str:
    """One line about the fleet."""
    if look is None:
        return "Nothing has been read yet."
    rows = look.rows
    made, gone = (sum(rate or 0 for rate in rates) for rates in _changes(rows))
    active, waiting = sum(row.state == "active" for row in rows), sum(row.waiting + row.waiting_bulk for row in rows)
    beat = "" if look.beat_silent_for is None else f"; beat asked {span(look.beat_silent_for)} ago"
    return (
        f"{active:,} of {len(rows):,} active; {sum(row.peers for row in rows):,} peers, +{made:,.0f}/s -{gone:,.0f}/s;"
        f" {waiting:,} waiting{beat}; as of {time.strftime('%H:%M:%S UTC', time.gmtime(look.at))}"
    )


def _changes(rows: tuple[Row, ...]) -> tuple[list[float | None], list[float | None]]:
    return [row.created_per_second for row in rows], [row.deleted_per_second for row in rows]


def sentences(look: Look) -> list[Cell]:
    """Alarms and full lanes first; then messages set aside, starts a short while ago, a missing beat."""
    alarms = [
        f"ALARM {row.gateway} {alarm.kind}, for {span(max(0.0, look.at - alarm.since))}: {alarm.message}"
        f" ({alarm.runbook})"
        for row in look.rows
        for alarm in row.alarms
    ]
    full = [
        f"The lane of {row.gateway} is full: {max(row.waiting, row.waiting_bulk):,} wait, and more are refused."
        for row in look.rows
        if row.lane_full
    ]
    notes: list[str] = []
    for row in look.rows:
        if row.coming:
            notes.append(f"{row.gateway} has {row.coming:,} peers still to be added to its device after a start.")
        if row.restarted:
            notes.append(
                f"The writer of {row.gateway} was started again {span(row.writer_age or 0)} ago; its log says why."
            )
        if row.set_aside:
            count = f"{row.set_aside:,} message{'' if row.set_aside == 1 else 's'}"
            notes.append(f"{row.gateway} has set {count} aside: peerlane gateway poison {row.gateway}")
    if any(row.observed for row in look.rows) and all(row.beat_missing for row in look.rows if row.observed):
        notes.append(f"Beat has asked for nothing for {span(look.beat_silent_for or 0)}: is one running?")
    if hidden := sum(not row.visible for row in look.rows):
        notes.append(f"Alarms and observers of {hidden} gateways are not for this Redis user to see.")
    return [*(Cell(text, "danger") for text in (*alarms, *full)), *(Cell(text, "warning") for text in notes)]


def as_document(look: Look | None, trouble: str) -> dict[str, Any]:
    """The page for programs, as ``peerlane top --json`` prints it; ``trouble`` says why it is old, or is empty."""
    return {
        "at": None if look is None else round(look.at, 3),
        "trouble": trouble or None,
        "beat_silent_for": None if look is None else look.beat_silent_for,
        "gateways": [] if look is None else [row.as_dict() for row in look.rows],
    }


def span(seconds: float) -> str:
    """A duration, roughly."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _state(row: Row) -> Cell:
    name = "stopped" if row.stopped else row.state
    text = f"{name} {row.recovered}" if row.recovered else name
    return Cell(text, _STATES.get(name, "danger"))


def _filled(count: int, most: int, text: str) -> Cell:
    share = count / most if most else 0.0
    return Cell(text, "danger" if share >= ALMOST else "warning" if share >= NEARLY else "")


def _peers(row: Row) -> Cell:
    return _filled(row.peers, row.max_peers, f"{row.peers:,} of {row.max_peers:,}")


def _waiting(count: int, row: Row) -> Cell:
    near = row.lane_cap and count / row.lane_cap >= HALF
    return _filled(count, row.lane_cap, f"{count:,} of {row.lane_cap:,}" if near else f"{count:,}")


def _wait(row: Row) -> Cell:
    if row.wait is None:
        return Cell("")
    if row.wait.kind == "at_least":
        return Cell(f"over {span(row.wait.seconds)}", "danger")
    seconds = row.wait.seconds
    about = f"{seconds:.1f} s" if seconds >= 1 else f"{max(1, round(seconds * 1000))} ms"
    return Cell(f"about {about}", "warning" if seconds >= 1 else "")


def _rate(rate: float | None) -> Cell:
    return Cell("" if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}".removesuffix(".0"))


def _writer(row: Row) -> Cell:
    if row.silent_for is None:
        return Cell("ended" if row.stopped else "none", "danger")
    return Cell(span(max(1.0, row.silent_for)), "danger" if row.state in ("down", "stuck") else "")


def _observer(row: Row) -> Cell:
    if row.observer_silent_for is None:
        return Cell("none" if row.visible else "hidden", "warning")
    return Cell(span(max(1.0, row.observer_silent_for)), "" if row.observed else "danger")


def _sweep(row: Row) -> Cell:
    if not row.sweep:
        return Cell("none")
    outcome, removed, missed = row.sweep.get("outcome"), removed_count(row.sweep), missed_count(row.sweep)
    ago = f"{span(float(row.sweep['ago']))} ago"
    if outcome == "refused":
        return Cell(f"refused, {ago}", "danger")
    if outcome == "running":
        return Cell(f"running: {removed:,} removed", "warning")
    if missed:
        return Cell(f"{removed:,} of {removed + missed:,} removed, {ago}", "danger")
    return Cell(f"{removed:,} removed, {ago}", "warning" if row.sweep.get("stopped") else "")


def _alarms(row: Row) -> Cell:
    if not row.visible:
        return Cell("hidden", "warning")
    return Cell(", ".join(alarm.kind for alarm in row.alarms) or "none", "danger" if row.alarms else "")


def _aside(row: Row) -> Cell:
    return Cell("" if row.set_aside is None else f"{row.set_aside:,}", "warning" if row.set_aside else "")


COLUMNS = (
    Column("Gateway", "its name", lambda row: Cell(row.gateway)),
    Column("State", "active, draining, recovering, stuck, stopped or down", _state),
    Column("Alarms", "kinds of alarms that stand", _alarms),
    Column("Region", "as its settings name it", lambda row: Cell(row.region)),
    Column("Peers", "peers, of the most it takes", _peers, numbers=True),
    Column(
        "Lane",
        "interactive requests that wait; from half of the most that may on, with that",
        lambda row: _waiting(row.waiting, row),
        numbers=True,
    ),
    Column(
        "Bulk",
        "bulk requests that wait; from half of the most that may on, with that",
        lambda row: _waiting(row.waiting_bulk, row),
        numbers=True,
    ),
    Column("Wait", "for how long requests wait; over: nothing was answered meanwhile", _wait),
    Column("+/s", "peers created a second", lambda row: _rate(row.created_per_second), numbers=True),
    Column("−/s", "peers deleted a second", lambda row: _rate(row.deleted_per_second), numbers=True),
    Column(
        "Refused/s", "requests refused by the writer a second", lambda row: _rate(row.refused_per_second), numbers=True
    ),
    Column("Writer", "for how long it has been silent; a second is none", _writer),
    Column("Starts", "how often a writer has started: its epoch", lambda row: Cell(f"{row.epoch:,}"), numbers=True),
    Column("Observer", "for how long it has been silent; a few seconds are none", _observer),
    Column("Last sweep", "what it removed", _sweep),
    Column("Set aside", "messages that could not be carried out", _aside, numbers=True),
)
