"""Renders ``peerlane top``: alarms first, so that none scrolls away, then one table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from peerlane.tasks.cli.tables import span, state
from peerlane.tasks.status.gateway_status import missed_count, removed_count
from peerlane.tasks.status.rates import Row, Wait
from peerlane.tasks.values.metrics import number as measured

#: Columns from which on there is room for all.
WIDE = 116

#: Share of the requests that may wait from which on their number is coloured.
NEARLY_FULL = 0.8

_UNKNOWN = Text("-", "dim")


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cell: Callable[[Row], Text]
    #: Whether it needs a wide table.
    wide: bool = False
    #: Whether it stands for a wider one where there is no room.
    narrow: bool = False
    right: bool = True


def frame(
    rows: Sequence[Row], *, at: float, width: int, height: int | None = None, trouble: str | None = None
) -> RenderableType:
    """The screen at one moment; ``at`` is in seconds on Redis' clock. With a ``height`` rows may be left out.

    ``trouble`` says why these rows are not of this moment.
    """
    above = _summary(rows, at, width)
    if trouble is not None:
        above += [Text(line, "bold red") for line in wrap(trouble, width)]
    if hidden := sum(not row.visible for row in rows):
        words = f"alarms, sweeps and observers of {hidden} are not for this Redis user to see"
        above += [Text(line, "yellow") for line in wrap(words, width)]
    for sentence in _troubles(rows):
        above += [Text(line, "yellow") for line in wrap(sentence, width)]
    above += _alarms(rows, at, width, None if height is None else height // 2)
    # Header and footer of the table take a line each.
    room = None if height is None else max(1, height - len(above) - 2)
    parts: list[RenderableType] = [*above, table(rows[:room], width)]
    if len(rows) > len(rows[:room]):
        parts.append(Text(f"and {len(rows) - len(rows[:room])} more, in less trouble", "dim"))
    return Group(*parts)


def table(rows: Sequence[Row], width: int) -> Table:
    """A table of the gateways in their order, with as many columns as fit."""
    wide = width >= WIDE
    columns = [one for one in _COLUMNS if not (one.narrow if wide else one.wide)]
    cells = [[one.cell(row) for row in rows] for one in columns]
    widths = [
        max([len(one.title), *(cell.cell_len for cell in column)]) for one, column in zip(columns, cells, strict=True)
    ]
    gap = 2 if sum(widths) + 2 * len(widths) <= width else 1
    screen = Table(box=None, padding=(0, gap, 0, 0), header_style="bold")
    # Of all that stands here only a gateway's name may be cut.
    widths[0] = max(6, min(widths[0], width - sum(widths[1:]) - gap * len(widths)))
    for one, size in zip(columns, widths, strict=True):
        justify = "right" if one.right else "left"
        screen.add_column(one.title, justify=justify, no_wrap=True, overflow="ellipsis", width=size)
    for line in zip(*cells, strict=True):
        screen.add_row(*line)
    return screen


def _summary(rows: Sequence[Row], at: float, width: int) -> list[Text]:
    """The fleet in a line, or in two where there is no room."""
    fleet = Text(time.strftime("%H:%M:%S UTC  ", time.gmtime(at)), "bold")
    fleet.append(f"{len(rows):,} gateway{'' if len(rows) == 1 else 's'}", "not bold")
    counts = Counter("stopped" if row.stopped else row.state for row in rows)
    shown = [name for name in ("down", "stopped", "stuck", "recovering", "draining", "active") if counts[name]]
    for number, name in enumerate(shown):
        fleet.append(", " if number else ": ", "not bold")
        fleet.append(
            f"{counts[name]:,} {name}", Style.combine([Style(bold=False), Style.parse(state(name).style or "none")])
        )
    waiting = sum(row.waiting + row.waiting_bulk for row in rows)
    made, gone = (sum(rate or 0 for rate in map(of, rows)) for of in (_made, _gone))
    sums = Text(f"{sum(row.peers for row in rows):,} peers, +{made:,.0f}/s -{gone:,.0f}/s, {waiting:,} waiting")
    return [Text("; ").join([fleet, sums])] if fleet.cell_len + sums.cell_len + 2 <= width else [fleet, sums]


def _troubles(rows: Sequence[Row]) -> list[str]:
    """What is wrong and has no alarm: full lanes, messages set aside, no beat. One sentence each."""
    sentences: list[str] = []
    if full := [f"{row.gateway} ({max(row.waiting, row.waiting_bulk):,} wait)" for row in rows if row.lane_full]:
        sentences.append(f"full lanes, which refuse requests: {', '.join(full[:5])}{_and_more(full)}")
    if aside := [f"{row.gateway} ({row.set_aside:,})" for row in rows if row.set_aside]:
        sentences.append(f"messages set aside (`peerlane gateway poison`): {', '.join(aside[:5])}{_and_more(aside)}")
    if coming := [f"{row.gateway} ({row.coming:,})" for row in rows if row.coming]:
        sentences.append(
            f"peers still to be added to the device after a start: {', '.join(coming[:5])}{_and_more(coming)}"
        )
    if begun := [
        f"{row.gateway} ({span(row.writer_age or 0)} ago, epoch {row.epoch})" for row in rows if row.restarted
    ]:
        sentences.append(f"writers that were started again: {', '.join(begun[:5])}{_and_more(begun)}")
    silent = min((row.beat_silent_for for row in rows if row.beat_silent_for is not None), default=None)
    if silent is not None and all(row.beat_missing for row in rows if row.observed):
        sentences.append(f"beat has asked for nothing for {span(silent)}: is one running?")
    return sentences


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 5:,} more" if len(names) > 5 else ""


def _alarms(rows: Sequence[Row], at: float, width: int, room: int | None) -> list[Text]:
    """Every alarm in a few lines each; those that ``room`` is too small for are counted."""
    found: list[Text] = []
    alarms = [(row.gateway, alarm) for row in rows for alarm in row.alarms]
    for number, (gateway, alarm) in enumerate(alarms):
        words = f"ALARM {gateway} {alarm.kind}, for {span(max(0, at - alarm.since))}: {alarm.message} ({alarm.runbook})"
        lines = wrap(words, width, max_lines=None if room is None else 3, placeholder="…")
        if room is not None and len(found) + len(lines) > room:
            return [*found, Text(f"and {len(alarms) - number} more alarms: see `peerlane gateway list`", "bold red")]
        found += [Text(line, "bold red") for line in lines]
    return found


def _made(row: Row) -> float | None:
    return row.created_per_second


def _gone(row: Row) -> float | None:
    return row.deleted_per_second


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
    """What the last sweep came to, and when."""
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


_COLUMNS = (
    _Column("gateway", _name, right=False),
    _Column("state", _state, right=False),
    _Column("peers", lambda row: Text(f"{row.peers:,}")),
    _Column("of", _of, wide=True),
    _Column("full", _full, narrow=True),
    _Column("lane", lambda row: _waiting(row.waiting, row)),
    _Column("bulk", lambda row: _waiting(row.waiting_bulk, row)),
    _Column("wait", lambda row: _wait(row.wait)),
    _Column("+/s", lambda row: _rate(_made(row))),
    _Column("-/s", lambda row: _rate(_gone(row))),
    _Column("ref/s", _refused, wide=True),
    _Column("rx/s", lambda row: _bytes(row.rx_per_second), wide=True),
    _Column("tx/s", lambda row: _bytes(row.tx_per_second), wide=True),
    _Column("writer", _writer, wide=True),
    _Column("observer", _observer, wide=True),
    _Column("beats", _beats, narrow=True),
    _Column("last sweep", _sweep, wide=True, right=False),
    _Column("swept", _swept, narrow=True),
)
