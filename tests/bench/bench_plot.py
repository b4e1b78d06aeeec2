"""The picture of ``bench_curve``: its figures as an SVG. The same figures give the same bytes.

    python tests/bench/bench_plot.py docs/latency.json docs/latency.svg

Written by hand: five lines are not worth the eight distributions that matplotlib would add to the lock, and the
reader's browser chooses between light and dark, which matplotlib would have settled when it drew.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 76, 690, 84, 392
#: The least distance between two labels beside the lines.
APART = 18

#: Field, label, colour, whether dashed; dashed is the 99th percentile.
LINES = (
    ("syncconf_ms", "wg syncconf p50", "syncconf", False),
    ("create_p99_ms", "create p99", "create", True),
    ("delete_p99_ms", "delete p99", "delete", True),
    ("create_p50_ms", "create p50", "create", False),
    ("delete_p50_ms", "delete p50", "delete", False),
)

#: Name: in light, in dark.
COLOURS = {
    "back": ("#ffffff", "#0d1117"),
    "text": ("#1f2328", "#e6edf3"),
    "faint": ("#59636e", "#9198a1"),
    "grid": ("#d8dee4", "#30363d"),
    "create": ("#0969da", "#58a6ff"),
    "delete": ("#1a7f37", "#3fb950"),
    "syncconf": ("#bc4c00", "#f0883e"),
}
SHAPES = """text { font: 14px system-ui, sans-serif; } .title { font-size: 18px; font-weight: 600; }
.end { text-anchor: end; } .middle { text-anchor: middle; } text, circle, rect { fill: currentColor; }
line, polyline { stroke: currentColor; fill: none; } polyline { stroke-width: 2.5; stroke-linejoin: round; }
polyline.dashed { stroke-dasharray: 6 5; stroke-width: 2; }"""


def style() -> str:
    """The picture's shapes, and its colours in light and in dark."""
    light, dark = (" ".join(f".{name} {{ color: {pair[at]}; }}" for name, pair in COLOURS.items()) for at in (0, 1))
    return f"{SHAPES}\n{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"


def plot(figures: dict[str, Any]) -> str:
    """The SVG: milliseconds on a logarithmic scale over the number of peers, which may be 0 and so is linear."""
    points: list[dict[str, float]] = sorted(figures["points"], key=lambda point: point["peers"])
    steps = ticks([point[field] for point in points for field, *_ in LINES])
    most = max(points[-1]["peers"], 1)

    def x(peers: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * peers / most, 1)

    def y(ms: float) -> float:
        share = math.log(ms / steps[0]) / math.log(steps[-1] / steps[0])
        return round(BOTTOM - (BOTTOM - TOP) * share, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title">',
        '<title id="title">What one request takes, over the number of peers on the gateway</title>',
        f"<style>\n{style()}\n</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        text(24, 34, "What one request takes, over the number of peers on the gateway", "text title"),
        text(24, 58, _described(points), "faint"),
    ]
    for tick in steps:
        parts += [
            f'<line class="grid" x1="{LEFT}" y1="{y(tick)}" x2="{RIGHT}" y2="{y(tick)}"/>',
            text(LEFT - 8, y(tick) + 5, f"{tick:,g} ms" if tick < 1000 else f"{tick / 1000:g} s", "faint end"),
        ]
    for place in apart([x(point["peers"]) for point in points], 60):
        parts.append(text(x(points[place]["peers"]), BOTTOM + 22, f"{points[place]['peers']:,.0f}", "faint middle"))
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 48, f"peers · {figures['about']}", "faint middle"))
    labels = spread([y(points[-1][field]) for field, *_ in LINES])
    for (field, label, colour, dashed), at in zip(LINES, labels, strict=True):
        corners = " ".join(f"{x(point['peers'])},{y(point[field])}" for point in points)
        parts.append(f'<polyline class="{colour}{" dashed" if dashed else ""}" points="{corners}"/>')
        parts += [
            f'<circle class="{colour}" cx="{x(p["peers"])}" cy="{y(p[field])}" r="{3 if dashed else 4}"/>'
            for p in points
        ]
        parts.append(text(RIGHT + 14, round(at + 5, 1), label, colour))
    return "\n".join([*parts, "</svg>", ""])


def text(x: float, y: float, words: str, look: str) -> str:
    """Words at a place."""
    return f'<text class="{look}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def _described(points: Sequence[dict[str, float]]) -> str:
    """What the picture says, in numbers."""
    first, last = points[0], points[-1]
    grown = {field: last[field] / first[field] for field in ("create_p50_ms", "delete_p50_ms", "syncconf_ms")}
    return (
        f"from {first['peers']:,.0f} to {last['peers']:,.0f} peers: create p50 {grown['create_p50_ms']:.1f} times, "
        f"delete p50 {grown['delete_p50_ms']:.1f} times, wg syncconf {grown['syncconf_ms']:.0f} times"
    )


def ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10 …, from below the least to above the greatest of ``values``, which are above 0."""
    steps = [m * 10.0**e for e in range(-3, 8) for m in (1, 2, 5)]
    start = max((at for at, step in enumerate(steps) if step <= min(values)), default=0)
    end = min(at for at, step in enumerate(steps) if step >= max(values))
    return steps[start : max(end, start + 1) + 1]


def apart(places: Sequence[float], least: float) -> list[int]:
    """Which of the ascending ``places`` can have a label; the last one always does."""
    chosen = [len(places) - 1]
    for at in range(len(places) - 2, -1, -1):
        if places[chosen[-1]] - places[at] >= least:
            chosen.append(at)
    return chosen[::-1]


def spread(places: Sequence[float]) -> list[float]:
    """The places, in their order, moved just far enough apart to be read."""
    spots = list(places)
    order = sorted(range(len(spots)), key=lambda at: spots[at])
    for _ in range(100):
        for upper, lower in pairwise(order):
            if (near := APART - (spots[lower] - spots[upper])) > 0:
                spots[upper] -= near / 2
                spots[lower] += near / 2
    return [round(at, 1) for at in spots]


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(plot(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
