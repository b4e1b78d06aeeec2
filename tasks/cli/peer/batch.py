"""Creates or deletes many peers by lists, with a progress bar and an answer for each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from peerlane.config import names
from peerlane.tasks.cli.output import Output, as_document, progress_bar
from peerlane.tasks.cli.peer.batch_file import Line
from peerlane.tasks.cli.program import INTERRUPTED, Exit
from peerlane.tasks.cli.session import Session
from peerlane.tasks.errors import Invalid, PeerlaneError
from peerlane.tasks.lane.slices import ask_list
from peerlane.tasks.wire.bulk import SLICE
from peerlane.tasks.wire.model import PeerResult


@dataclass(frozen=True, slots=True)
class Batch:
    """The options of a batch."""

    #: Seconds for each slice; None for the setting.
    timeout: float | None
    #: Wishes outstanding at once.
    window: int


@dataclass(slots=True)
class Answered:
    """The answers so far."""

    total: int
    answers: list[tuple[Line, PeerResult | PeerlaneError]] = field(
        default_factory=list[tuple[Line, PeerResult | PeerlaneError]]
    )
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def counts(self) -> Counter[str]:
        """The number of each outcome, and ``failed``."""
        return Counter("failed" if isinstance(answer, PeerlaneError) else answer.outcome for _, answer in self.answers)

    @property
    def status(self) -> int:
        """The exit status: the common one if all failed with the same status, else 1 if any failed."""
        if self.interrupted:
            return INTERRUPTED
        kinds = {answer.exit_code if isinstance(answer, PeerlaneError) else 0 for _, answer in self.answers}
        return max(kinds) if len(kinds) == 1 else int(any(kinds))


def ask_many(session: Session, task: str, gateway: str, lines: Sequence[Line], batch: Batch) -> Answered:
    """Send all, as lists. Ctrl-C ends it early and cancels what is outstanding."""
    done = Answered(len(lines))
    began = time.monotonic()
    wishes = [line.wish if task == names.CREATE_PEERS else _key(line) for line in lines]
    timeout = batch.timeout or session.settings.timeout
    size, window = min(SLICE, batch.window), max(1, batch.window // SLICE)
    with (
        progress_bar(session.output) as bar,
        closing(ask_list(session.app, task, gateway, wishes, timeout=timeout, size=size, window=window)) as answers,
    ):
        progress = bar.add_task(gateway, total=len(lines), rate="")
        try:
            for line, answer in zip(lines, answers, strict=True):
                done.answers.append((line, answer))
                done.seconds = time.monotonic() - began
                bar.update(progress, advance=1, rate=f"{len(done.answers) / max(done.seconds, 1e-6):,.0f}/s")
        except KeyboardInterrupt:
            done.interrupted = True
    done.seconds = time.monotonic() - began
    return done


def _key(line: Line) -> object:
    return line.wish if isinstance(line.wish, Invalid) else line.wish.get("public_key")


def create_many(session: Session, gateway: str, lines: Sequence[Line], batch: Batch) -> None:
    """Create every line's peer through the bulk queue, and print each answer.

    Raises:
        Exit: some failed; all has been said.
    """
    tell(session.output, gateway, ask_many(session, names.CREATE_PEERS, gateway, lines, batch), numbered=True)


def delete_many(session: Session, gateway: str, lines: Sequence[Line], batch: Batch, *, numbered: bool) -> None:
    """Delete every line's peer, and print each answer; ``numbered``: they are lines of a file.

    Raises:
        Exit: some failed; all has been said.
    """
    tell(session.output, gateway, ask_many(session, names.DELETE_PEERS, gateway, lines, batch), numbered=numbered)


def tell(output: Output, gateway: str, done: Answered, *, numbered: bool) -> None:
    """Print a line or object for each answer, then the counts.

    Raises:
        Exit: not all of it was done.
    """
    if output.json:
        output.document(
            {
                "gateway": gateway,
                "results": [_object(line, answer, numbered=numbered) for line, answer in done.answers],
                "summary": {
                    "asked": done.total,
                    "answered": len(done.answers),
                    **{name: done.counts[name] for name in sorted(done.counts)},
                    "seconds": round(done.seconds, 3),
                },
            }
        )
    else:
        for line, answer in done.answers:
            output.out.print(_sentence(line, answer, numbered=numbered), soft_wrap=True)
        sums = ", ".join(f"{count:,} {name}" for name, count in sorted(done.counts.items())) or "nothing"
        rate = f"{len(done.answers) / done.seconds:,.0f}/s" if done.seconds > 0 else ""
        output.note(f"{sums} in {done.seconds:.1f} s, {rate}", "red" if done.counts["failed"] else "green")
        if done.interrupted:
            output.warn(
                f"interrupted after {len(done.answers):,} of {done.total:,}; what was outstanding is cancelled unless "
                "it had taken effect, and the same list can be asked again: what is there is answered with existing"
            )
    if done.status:
        raise Exit(done.status)


def _object(line: Line, answer: PeerResult | PeerlaneError, *, numbered: bool) -> dict[str, Any]:
    about: dict[str, Any] = {"line": line.number} if numbered else {}
    if isinstance(answer, PeerResult):
        return about | answer.model_dump(mode="json")
    if line.public_key is not None:
        about["public_key"] = line.public_key
    return {**about, "error": as_document(answer)}


def _sentence(line: Line, answer: PeerResult | PeerlaneError, *, numbered: bool) -> Text:
    where = f"line {line.number}: " if numbered else ""
    if isinstance(answer, PeerlaneError):
        return Text(f"{where}{answer.code}  {line.public_key or '-'}  {answer.message}", "red")
    return Text(
        "  ".join(part for part in (where + answer.outcome, answer.public_key, ", ".join(answer.allowed_ips)) if part)
    )
