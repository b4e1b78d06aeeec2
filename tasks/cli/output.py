"""The output of a command: one JSON document for programs, tables and sentences for people."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from peerlane.tasks.cli.stdio import takes_all_of_unicode, without_surrogates
from peerlane.tasks.errors import PeerlaneError

if TYPE_CHECKING:  # loaded by what prints for people
    from rich.console import Console, RenderableType

#: Columns for output that goes to no terminal: wide enough for any line of ours, so that none is folded.
UNFOLDED = 4096


class Output:
    """Standard output and standard error of one command. Results go to the first, all else to the second."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        #: Takes sentences instead of standard error, in a process whose log is one JSON document a line.
        self.log: logging.Logger | None = None
        #: Whether the items of a list are being written.
        self._begun = False

    @cached_property
    def out(self) -> Console:
        """Standard output, for people."""
        from peerlane.tasks.cli.console import plain_console

        return plain_console(stderr=False)

    @cached_property
    def err(self) -> Console:
        """Standard error, for people."""
        from peerlane.tasks.cli.console import plain_console

        return plain_console(stderr=True)

    def document(self, content: Mapping[str, Any], *, in_one_line: bool = False) -> None:
        """Print the JSON document. Only with ``--json``, and only once, or each ``in_one_line``."""
        indent = 2 if sys.stdout.isatty() and not in_one_line else None
        text = json.dumps(content, indent=indent, ensure_ascii=not takes_all_of_unicode())
        sys.stdout.write(without_surrogates(text) + "\n")

    def listing(self, about: Mapping[str, Any], name: str, items: Iterable[Mapping[str, Any]]) -> None:
        """The one JSON document, with a list in it that is written item by item.

        An exception on the way ends in ``error``, which completes the document with the error in it.
        """
        ascii_only, between = not takes_all_of_unicode(), ""
        head = json.dumps({**about, name: []}, ensure_ascii=ascii_only)
        sys.stdout.write(without_surrogates(head[: -len("]}")]))
        self._begun = True
        for item in items:
            text = without_surrogates(json.dumps(item, ensure_ascii=ascii_only))
            sys.stdout.write(between + text)
            between = ", "
        sys.stdout.write("]}\n")
        self._begun = False

    def show(self, renderable: RenderableType) -> None:
        """Print a result for people."""
        self.out.print(renderable)

    def lines(self, text: str) -> None:
        """Print a file's content, unchanged."""
        sys.stdout.write(text)

    def note(self, sentence: str, style: str = "") -> None:
        """Print a sentence beside the result, for people only."""
        if self.json:
            return
        if self.log is not None:
            self.log.info(sentence)
        else:
            self._tell(sentence, style)

    def _tell(self, sentence: str, style: str) -> None:
        from rich.text import Text

        self.err.print(Text(sentence, style), soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Print a warning."""
        self.note(sentence, "yellow")

    def error(self, error: Mapping[str, Any]) -> None:
        """Print the error of a failed command: a document for programs, one red sentence for people."""
        if self.json and self._begun:
            text = json.dumps(dict(error), ensure_ascii=not takes_all_of_unicode())
            sys.stdout.write(f'], "error": {without_surrogates(text)}}}\n')
        elif self.json:
            self.document({"error": dict(error)})
        elif self.log is not None:
            self.log.critical(error["message"])
        else:
            self._tell(f"error: {error['message']}", "red")


def as_document(error: PeerlaneError, **about: object) -> dict[str, Any]:
    """An error as a document; ``about`` names its subject, if known."""
    return {**error.as_dict(), **{name: value for name, value in about.items() if value not in (None, "")}}
