"""Log lines of Peerlane's processes: text, or one JSON document a line (PEERLANE_LOG_FORMAT, PEERLANE_LOG_LEVEL).

Everything is logged by Python's logging, Celery's own lines too; only the handler of the root logger differs. A
document has ``time``, ``level``, ``process``, ``gateway``, ``logger`` and ``message``; ``request`` where the line is
about one, ``code`` where it tells an error of Peerlane's, ``exception`` where there is a stack.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from peerlane.config import names
from peerlane.config.settings import Settings

#: The beginning of each line of a process that is not a Celery worker.
_TEXT = "[%(asctime)s: %(levelname)s/{}] %(message)s"


def configure(settings: Settings, process: str, level: str | int | None = None) -> None:
    """Have this process log to standard error in the format of the settings; ``level`` wins over theirs."""
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(json_formatter(process, settings.gateway))
    else:
        handler.setFormatter(logging.Formatter(_TEXT.format(process)))
    root.handlers = [handler]
    root.setLevel(level.upper() if isinstance(level, str) else level or (settings.log_level or "info").upper())


def json_formatter(process: str, gateway: str | None) -> logging.Formatter:
    """Writes records as JSON documents."""
    import structlog  # noqa: PLC0415 - where it is asked for

    def describe(_: object, __: str, event: Any) -> Any:
        return _described(event, process, gateway)

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[describe],
        pass_foreign_args=True,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )


def _described(event: Mapping[str, Any], process: str, gateway: str | None) -> dict[str, Any]:
    record: logging.LogRecord = event["_record"]
    document: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "process": process,
    }
    if gateway is not None:
        document["gateway"] = gateway
    for value in _arguments(event.get("positional_args")):
        if gateway is not None and names.is_request_id(gateway, value):
            document.setdefault("request", value)
        elif isinstance(value, BaseException) and isinstance(code := getattr(value, "code", None), str):
            document.setdefault("code", code)
    document |= {"logger": record.name, "message": event["event"]}
    kept = ("_record", "_from_structlog", "exc_info")
    return document | {name: event[name] for name in kept if name in event}


def _arguments(given: object) -> Iterator[object]:
    """What a line was made of: a tuple, or the one mapping that Celery's lines of tasks are made of."""
    if isinstance(given, tuple):
        yield from cast("tuple[object, ...]", given)
    elif isinstance(given, Mapping):
        yield from cast("Mapping[object, object]", given).values()
