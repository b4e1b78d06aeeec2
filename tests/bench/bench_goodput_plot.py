"""The picture of ``bench_callers``: creates answered in time over the number of callers. Same figures, same bytes.

python tests/bench/bench_goodput_plot.py docs/goodput.json docs/goodput.svg
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from bench_plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, style, text

TITLE = "Creates answered in time, over the number of callers that ask at once"


def plot_goodput(figures: dict[str, Any]) -> str:
    """The SVG: creates a second over the number of callers, which is on a logarithmic scale."""
    points: list[dict[str, float]] = sorted(figures["goodput"], key=lambda point: point["callers"])
    most = max(point["per_s"] for point in points) or 1.0
    step = 10 ** math.floor(math.log10(most))
    top = step * math.ceil(most / step)
    first, last = math.log(points[0]["callers"]), math.log(points[-1]["callers"])

    def x(callers: float) -> float:
        return round(LEFT + 30 + (RIGHT - LEFT - 30) * (math.log(callers) - first) / ((last - first) or 1.0), 1)

    def y(per_s: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * per_s / top, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">{TITLE}</title>',
        f"<style>\n{style()}\n</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        text(24, 34, TITLE, "text title"),
        text(24, 58, "each asks again as soon as it is answered; a create beyond its timeout does not count", "faint"),
    ]
    for part in range(5):
        value = top * part / 4
        parts += [
            f'<line class="grid" x1="{LEFT}" y1="{y(value)}" x2="{RIGHT}" y2="{y(value)}"/>',
            text(LEFT - 8, y(value) + 5, f"{value:,.0f}/s", "faint end"),
        ]
    corners = " ".join(f"{x(point['callers'])},{y(point['per_s'])}" for point in points)
    parts.append(f'<polyline class="create" points="{corners}"/>')
    for point in points:
        at, height = x(point["callers"]), y(point["per_s"])
        parts += [
            f'<circle class="create" cx="{at}" cy="{height}" r="4"/>',
            text(at, height - 12, f"{point['per_s']:,.0f}", "create middle"),
            text(at, BOTTOM + 22, f"{point['callers']:,.0f} × {point['timeout_s']:g} s", "faint middle"),
        ]
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 48, f"callers × timeout · {figures['about']}", "faint middle"))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(plot_goodput(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
