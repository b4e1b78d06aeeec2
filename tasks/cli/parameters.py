"""Types of arguments: gateway names, durations, labels. A malformed one is a usage error."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import click

from peerlane.config import names

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,12})([smhdw]?)")


def parse_duration(text: str) -> int:
    """Seconds from ``90``, ``90s``, ``15m``, ``1h``, ``2d`` or ``1w``.

    Raises:
        ValueError: anything else.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration such as 90, 90s, 15m, 1h, 2d or 1w")
    return int(match[1]) * _UNITS[match[2]]


class Duration(click.ParamType[int]):
    """See ``parse_duration``."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Seconds(click.FloatRange):
    """Seconds in a range, ``0.5``, or as ``parse_duration`` has them; click's own type accepts nan in any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = parse_duration(str(value))
            except ValueError as error:
                self.fail(str(error), param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return float(super().convert(seconds, param, ctx))


class GatewayName(click.ParamType[str]):
    """A well-formed gateway name; it need not be registered."""

    name = "gateway"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not names.GATEWAY_NAME.fullmatch(str(value)):
            self.fail("a gateway's name is a-z, 0-9 and -, at most 63 characters, and starts with no -", param, ctx)
        return str(value)


def parse_label(text: str) -> tuple[str, str]:
    """Name and value from ``name=value``.

    Raises:
        ValueError: there is no =.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r} is no label: expected name=value")
    return name, value


def labels_from(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Callback of ``--label``."""
    labels: dict[str, str] = {}
    for text in values:
        try:
            name, value = parse_label(text)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None
        if name in labels:
            raise click.BadParameter(f"the label {name} is given twice", ctx, param)
        labels[name] = value
    return labels
