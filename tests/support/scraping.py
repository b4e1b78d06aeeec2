"""An exporter as operators start it, and what Prometheus would read there."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from commands import ended, spawned
from prometheus_client.parser import text_string_to_metric_families

#: Name of a sample, its labels sorted → its value.
Scrape = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Scrape:
    """Every sample of an exposition."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(scrape: Scrape, name: str, **labels: str) -> float | None:
    """One sample's value; None where there is no such sample."""
    return scrape.get((name, tuple(sorted(labels.items()))))


class ExporterProcess:
    """``peerlane exporter`` on a port of the system's choice."""

    def __init__(self, redis_url: str, *options: str, **how: Any) -> None:
        self._process = spawned("exporter", "--listen", "127.0.0.1:0", "--json", *options, redis=redis_url, **how)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, ended(self._process)
        self.url = str(json.loads(line)["url"])

    @property
    def address(self) -> str:
        """``host:port``, as Prometheus names a target."""
        return self.url.removeprefix("http://").removesuffix("/metrics")

    def text(self) -> str:
        """What it answers."""
        with urllib.request.urlopen(self.url, timeout=20) as answer:  # noqa: S310 - http on loopback
            return answer.read().decode()

    def scrape(self) -> Scrape:
        """Its samples."""
        return parsed(self.text())

    def stop(self) -> tuple[int, str, str]:
        """Ask it to end, as systemd would; status, standard output, standard error."""
        self._process.terminate()
        return ended(self._process, within=20)


@contextmanager
def exporting(redis_url: str, *options: str, **how: Any) -> Generator[ExporterProcess]:
    """An exporter that ends in order after the test; AssertionError if it does not."""
    exporter = ExporterProcess(redis_url, *options, **how)
    try:
        yield exporter
    finally:
        status, out, err = exporter.stop()
    assert status == 0, f"{out}{err}"
    assert "Traceback" not in err, err
