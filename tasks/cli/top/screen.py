"""Renders ``peerlane top``: alarms first, so that none scrolls away, then one table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from peerlane.tasks.cli.tables import span, state
from peerlane.tasks.cli.top.columns import COLUMNS, Column
from peerlane.tasks.status.rates import Row

#: Columns from which on there is room for all.
WIDE = 116

#: Letters of a gateway's name that stay.
SHORTEST_NAME = 8
#: The columns of a narrow table that are left out where there is no room, in this order.
_FIRST_LEFT_OUT = ("swept", "full", "-/s", "+/s", "beats")


def frame(
    rows: Sequence[Row], *, at: float, width: int, height: int | None = None, trouble: str | None = None
) -> RenderableType:
    """The screen at one moment; ``at`` is in seconds on Redis' clock. With a ``height`` rows may be left out.

    ``trouble`` says why these rows are not of this moment.
    """
    read = bool(rows) or trouble is None
    above = _summary(rows, at, width) if read else [_clock(at)]
    if trouble is not None:
        above += [Text(line, "bold red") for line in wrap(trouble, width)]
    if hidden := sum(not row.visible for row in rows):
        words = f"alarms, sweeps and observers of {hidden} are not for this Redis user to see"
        above += [Text(line, "yellow") for line in wrap(words, width)]
    for sentence in _troubles(rows):
        above += [Text(line, "yellow") for line in wrap(sentence, width)]
    above += _alarms(rows, at, width, None if height is None else height // 2)
    if not read:
        return Group(*above)
    if not rows:
        return Group(*above, Text("no gateway is registered; `peerlane gateway run NAME` starts one", "dim"))
    left_out = _fitting(rows, width).left_out
    # Header and footer of the table take a line each.
    room = None if height is None else max(1, height - len(above) - 2 - bool(left_out))
    parts: list[RenderableType] = [*above, table(rows[:room], width)]
    if left_out:
        parts.append(Text(f"no room for {', '.join(left_out)}", "dim"))
    if len(rows) > len(rows[:room]):
        parts.append(Text(f"and {len(rows) - len(rows[:room])} more, in less trouble", "dim"))
    return Group(*parts)


@dataclass(frozen=True, slots=True)
class _Fitting:
    """The columns that fit, with their cells and widths, and the titles of those that do not."""

    columns: dict[Column, list[Text]]
    widths: list[int]
    gap: int
    left_out: list[str]


def _fitting(rows: Sequence[Row], width: int) -> _Fitting:
    wide = width >= WIDE
    columns = {
        column: [column.cell(row) for row in rows] for column in COLUMNS if not (column.narrow if wide else column.wide)
    }
    by_title, left_out = {column.title: column for column in columns}, list[str]()
    while True:
        widths = [max([len(column.title), *(cell.cell_len for cell in cells)]) for column, cells in columns.items()]
        gap = 2 if sum(widths) + 2 * len(widths) <= width else 1
        # Only a gateway's name may be cut, and not to less than a few letters.
        room = width - sum(widths[1:]) - gap * len(widths)
        if wide or room >= min(SHORTEST_NAME, widths[0]) or len(left_out) == len(_FIRST_LEFT_OUT):
            widths[0] = max(min(SHORTEST_NAME, widths[0]), min(widths[0], room))
            return _Fitting(columns, widths, gap, left_out)
        title = _FIRST_LEFT_OUT[len(left_out)]
        del columns[by_title[title]]
        left_out.append(title)


def table(rows: Sequence[Row], width: int) -> Table:
    """A table of the gateways in their order, with as many columns as fit."""
    fitting = _fitting(rows, width)
    screen = Table(box=None, padding=(0, fitting.gap, 0, 0), header_style="bold")
    for column, size in zip(fitting.columns, fitting.widths, strict=True):
        justify = "right" if column.right else "left"
        screen.add_column(column.title, justify=justify, no_wrap=True, overflow="ellipsis", width=size)
    for line in zip(*fitting.columns.values(), strict=True):
        screen.add_row(*line)
    return screen


def _summary(rows: Sequence[Row], at: float, width: int) -> list[Text]:
    """The fleet in a line, or in two where there is no room."""
    fleet = _clock(at)
    fleet.append(f"{len(rows):,} gateway{'' if len(rows) == 1 else 's'}", "not bold")
    counts = Counter("stopped" if row.stopped else row.state for row in rows)
    shown = [name for name in ("down", "stopped", "stuck", "recovering", "draining", "active") if counts[name]]
    for number, name in enumerate(shown):
        fleet.append(", " if number else ": ", "not bold")
        fleet.append(
            f"{counts[name]:,} {name}", Style.combine([Style(bold=False), Style.parse(state(name).style or "none")])
        )
    waiting = sum(row.waiting + row.waiting_bulk for row in rows)
    made, gone = (sum(row.created_per_second or 0 for row in rows), sum(row.deleted_per_second or 0 for row in rows))
    sums = Text(f"{sum(row.peers for row in rows):,} peers, +{made:,.0f}/s -{gone:,.0f}/s, {waiting:,} waiting")
    return [Text("; ").join([fleet, sums])] if fleet.cell_len + sums.cell_len + 2 <= width else [fleet, sums]


def _clock(at: float) -> Text:
    return Text(time.strftime("%H:%M:%S UTC  ", time.gmtime(at)), "bold")


def _troubles(rows: Sequence[Row]) -> list[str]:
    """Troubles without an alarm: full lanes, messages set aside, no beat. One sentence each."""
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
    texts: list[Text] = []
    alarms = [(row.gateway, alarm) for row in rows for alarm in row.alarms]
    for number, (gateway, alarm) in enumerate(alarms):
        words = f"ALARM {gateway} {alarm.kind}, for {span(max(0, at - alarm.since))}: {alarm.message} ({alarm.runbook})"
        lines = wrap(words, width, max_lines=None if room is None else 3, placeholder="…")
        if room is not None and len(texts) + len(lines) > room:
            return [*texts, Text(f"and {len(alarms) - number} more alarms: see `peerlane gateway list`", "bold red")]
        texts += [Text(line, "bold red") for line in lines]
    return texts
