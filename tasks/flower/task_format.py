"""Formats requests for Flower: a peer's key and outcome in few words, a refusal as its code without a traceback."""

from __future__ import annotations

import ast
import re
from typing import Any

from peerlane.tasks import errors
from peerlane.tasks.errors import PeerlaneError, WriterError

#: An exception's repr, as an event has it.
_REPR = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\)", re.DOTALL)
#: The arguments and the result of a request for one peer, as its events have them.
_ARGUMENTS = re.compile(r"\{'public_key': '(?P<key>[^']+)'\}")
_RESULT = re.compile(r"'(?P<outcome>\w+) (?P<key>\S+) ?(?P<prefixes>[^']*)'")
_BY_NAME: dict[str, type[PeerlaneError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, PeerlaneError)
}


def formatted(task: Any) -> Any:
    """Flower's option ``format_task``: formats a copy of a task's fields."""
    arguments, result = (str(getattr(task, name, None)) for name in ("kwargs", "result"))
    asked, answered = _ARGUMENTS.fullmatch(arguments), _RESULT.fullmatch(result)
    if asked is not None:
        task.kwargs = asked["key"]
        if answered is not None and answered["key"] == asked["key"]:
            task.result = f"{answered['outcome']} {answered['prefixes']}".rstrip()
    shown = refusal(getattr(task, "exception", None))
    if shown is not None:
        code, message = shown
        task.result = code
        task.exception = f"{code}: {message}"
        task.traceback = None
    return task


def refusal(exception: object) -> tuple[str, str] | None:
    """Code and message of a Peerlane error, from its repr; None for errors that need a traceback."""
    parts = _REPR.fullmatch(exception) if isinstance(exception, str) else None
    kind = _BY_NAME.get(parts["name"]) if parts is not None else None
    if parts is None or kind is None or issubclass(kind, WriterError):
        return None
    try:
        message = ast.literal_eval(f"({parts['arguments']},)")[0]
    except (ValueError, SyntaxError, IndexError, RecursionError, MemoryError):
        message = parts["arguments"]  # an event may cut a long text off
    return kind.code, str(message)
