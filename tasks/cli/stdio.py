"""Makes the standard streams usable if they are closed, full, in ASCII or a terminal."""

from __future__ import annotations

import io
import os
import re
import sys

_SURROGATE = re.compile(r"[\ud800-\udfff]")
#: Stands for a character that cannot be shown.
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def prepare() -> None:
    """Make all three streams usable. A character that the encoding lacks is written as its number."""
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            # The lowest free number is that of the closed stream: no connection is opened in its place.
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), "r" if flags == os.O_RDONLY else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon_output() -> None:
    """Replace a broken standard output, so that the interpreter's last flush raises nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def takes_all_of_unicode() -> bool:
    """Whether standard output can show any character."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def without_surrogates(text: str) -> str:
    """Replace the surrogates of bytes that were no UTF-8, such as in a file's name."""
    return _SURROGATE.sub(UNKNOWN, text)
