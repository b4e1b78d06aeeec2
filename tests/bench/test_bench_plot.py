"""The picture of what a request takes: it is of the figures beside it, and can be read."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

from bench_goodput_plot import plot_goodput
from bench_plot import BOTTOM, LINES, TOP, plot

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_picture_in_the_documents_is_drawn_from_the_figures_beside_it() -> None:
    figures = json.loads((DOCS / "latency.json").read_text())
    assert (DOCS / "latency.svg").read_text() == plot(figures)


def test_a_picture_has_each_line_in_its_frame_and_labels_that_do_not_overlap() -> None:
    close = {field: 5.0 + at / 100 for at, (field, *_) in enumerate(LINES)}
    points = [{"peers": 0.0, **close}, {"peers": 50_000.0, **close, "syncconf_ms": 2_600.0}]
    picture = ET.fromstring(plot({"about": "a < b", "points": points}))  # noqa: S314 - our own
    lines = [node.attrib["points"] for node in picture if node.tag.endswith("polyline")]
    assert len(lines) == len(LINES)
    heights = [float(height) for line in lines for height in re.findall(r",([0-9.]+)", line)]
    assert len(heights) == len(LINES) * len(points)
    assert min(heights) >= TOP
    assert max(heights) <= BOTTOM
    labels = {label for _, label, *_ in LINES}
    places = sorted(float(node.attrib["y"]) for node in picture if node.text in labels)
    assert len(places) == len(LINES)
    assert min(lower - upper for upper, lower in pairwise(places)) > 15


def test_the_picture_of_goodput_in_the_documents_is_drawn_from_the_figures_beside_it() -> None:
    figures = json.loads((DOCS / "goodput.json").read_text())
    assert (DOCS / "goodput.svg").read_text() == plot_goodput(figures)


def test_a_picture_of_goodput_has_its_points_in_its_frame() -> None:
    points = [{"callers": n, "timeout_s": 1.0, "per_s": rate} for n, rate in ((8, 300.0), (1_000, 0.0))]
    picture = ET.fromstring(plot_goodput({"about": "a < b", "goodput": points}))  # noqa: S314 - our own
    (line,) = (node.attrib["points"] for node in picture if node.tag.endswith("polyline"))
    heights = [float(height) for height in re.findall(r",([0-9.]+)", line)]
    assert len(heights) == 2
    assert min(heights) >= TOP
    assert max(heights) == BOTTOM
