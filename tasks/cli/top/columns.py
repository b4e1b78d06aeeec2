"""The columns of ``peerlane top``: how each fact of a gateway is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.text import Text

from peerlane.tasks.cli.tables import span, state
from peerlane.tasks.status.gateway_status import missed_count, removed_count
from peerlane.tasks.status.rates import Row, Wait
from peerlane.tasks.values.metrics import number as measured

#: Share of the requests that may wait from which on their number is coloured.
NEARLY_FULL = 0.8

_UNKNOWN = Text("-", "dim")


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, and the function that makes its cells."""

    title: str
    cell: Callable[[Row], Text]
    #: Whether it needs a wide table.
    wide: bool = False
    #: Whether it stands for a wider one where there is no room.
    narrow: bool = False
    right: bool = True


def _name(row: Row) -> Text:
    return Text(row.gateway, "bold red" if row.alarms else "")


def _state(row: Row) -> Text:
    if not row.recovered:
        return state(row.state, stopped=row.stopped)
    done, _, total = row.recovered.partition("/")
    share = int(done) * 100 // max(1, int(total)) if done.isdecimal() and total.isdecimal() else 0
    return Text(f"recov. {share}%", "yellow")


def _full(row: Row) -> Text:
    share = row.peers / row.max_peers if row.max_peers else 0.0
    return Text(f"{share:.0%}", "red" if share >= 0.95 else "yellow" if share >= 0.8 else "")


def _of(row: Row) -> Text:
    return Text(f"{row.max_peers:,}", _full(row).style)


def _waiting(count: int, row: Row) -> Text:
    share = count / max(1, row.lane_cap)
    return Text(
        f"{count:,}", "bold red" if share >= 1 else "yellow" if share >= NEARLY_FULL else "" if count else "dim"
    )


def _wait(wait: Wait | None) -> Text:
    if wait is None:
        return Text()
    if wait.kind == "at_least":
        return Text(f">{_seconds(wait.seconds)}", "bold red")
    return Text(f"~{_seconds(wait.seconds)}", "yellow" if wait.seconds >= 1 else "")


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    return span(seconds).replace(" ", "").replace("min", "m")


def _rate(rate: float | None) -> Text:
    if rate is None:
        return _UNKNOWN.copy()
    return Text(f"{rate:,.0f}" if rate >= 10 or rate == int(rate) else f"{rate:.1f}", "" if rate else "dim")


def _refused(row: Row) -> Text:
    rate = _rate(row.refused_per_second)
    if row.refused_per_second:
        rate.stylize("yellow")
    return rate


def _bytes(rate: int | None) -> Text:
    if rate is None:
        return _UNKNOWN.copy()
    size = float(rate)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return Text(f"{size:.1f} {unit}" if unit != "B" and size < 10 else f"{size:.0f} {unit}", "" if rate else "dim")


def _writer(row: Row) -> Text:
    if row.silent_for is None:
        return Text("ended" if row.stopped else "none", "red")
    return Text(_age(row.silent_for), "red" if row.state in ("down", "stuck") else "")


def _observer(row: Row) -> Text:
    if not row.visible:
        return _UNKNOWN.copy()
    if row.observer_silent_for is None:
        return Text("none", "yellow")
    return Text(_age(row.observer_silent_for), "" if row.observed else "red")


def _age(seconds: float) -> str:
    # Beats come once a second: fractions of one say nothing.
    return _seconds(max(1.0, seconds))


def _beats(row: Row) -> Text:
    return Text.assemble(_writer(row), "/", _observer(row))


def _sweep(row: Row) -> Text:
    """The outcome of the last sweep, and when it was."""
    swept = _swept(row)
    if not row.sweep:
        return swept
    if row.sweep.get("outcome") == "running":
        return swept.append(f" of {int(measured(row.sweep.get('of'))):,}")
    return swept.append(f", {_seconds(row.sweep['ago'])} ago")


def _swept(row: Row) -> Text:
    """How many the last sweep removed, or why none."""
    if not row.sweep:
        return _UNKNOWN.copy()
    outcome, removed, missed = row.sweep.get("outcome"), removed_count(row.sweep), missed_count(row.sweep)
    if outcome == "refused":
        return Text("refused", "red")
    if missed:
        return Text(f"-{removed:,} of {removed + missed:,}", "red")
    style = "yellow" if outcome == "running" or row.sweep.get("stopped") else "" if removed else "dim"
    return Text(f"-{removed:,}" if removed else "0", style)


COLUMNS = (
    Column("gateway", _name, right=False),
    Column("state", _state, right=False),
    Column("peers", lambda row: Text(f"{row.peers:,}")),
    Column("of", _of, wide=True),
    Column("full", _full, narrow=True),
    Column("lane", lambda row: _waiting(row.waiting, row)),
    Column("bulk", lambda row: _waiting(row.waiting_bulk, row)),
    Column("wait", lambda row: _wait(row.wait)),
    Column("+/s", lambda row: _rate(row.created_per_second)),
    Column("-/s", lambda row: _rate(row.deleted_per_second)),
    Column("ref/s", _refused, wide=True),
    Column("rx/s", lambda row: _bytes(row.rx_per_second), wide=True),
    Column("tx/s", lambda row: _bytes(row.tx_per_second), wide=True),
    Column("writer", _writer, wide=True),
    Column("observer", _observer, wide=True),
    Column("beats", _beats, narrow=True),
    Column("last sweep", _sweep, wide=True, right=False),
    Column("swept", _swept, narrow=True),
)
