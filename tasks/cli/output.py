"""The output of a command: one JSON document for programs, tables and sentences for people."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from peerlane.tasks.cli.stdio import PlainConsole, takes_all_of_unicode, without_surrogates
from peerlane.tasks.errors import PeerlaneError

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
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

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
            self.err.print(Text(f"error: {error['message']}", "red"), soft_wrap=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return PlainConsole(stderr=stderr, highlight=False, markup=False, width=None if stream.isatty() else UNFOLDED)


def as_document(error: PeerlaneError, **about: object) -> dict[str, Any]:
    """An error as a document; ``about`` names its subject, if known."""
    return {**error.as_dict(), **{name: value for name, value in about.items() if value not in (None, "")}}


def progress_bar(output: Output) -> Progress:
    """A progress bar on standard error, if that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=output.err,
        disable=not output.err.is_terminal,
        expand=True,
        transient=True,
    )
