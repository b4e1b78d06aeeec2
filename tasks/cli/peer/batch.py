"""Creates or deletes many peers by lists, on one gateway or on those that are chosen, with an answer for each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from peerlane.config import names
from peerlane.tasks.cli.console import progress_bar
from peerlane.tasks.cli.output import Output, as_document
from peerlane.tasks.cli.peer.batch_file import Line
from peerlane.tasks.cli.program import INTERRUPTED, Exit
from peerlane.tasks.cli.session import Session
from peerlane.tasks.client.fleet import Fleet
from peerlane.tasks.client.placement import ListAnswer
from peerlane.tasks.errors import Invalid, OutcomeUnknown, PeerlaneError
from peerlane.tasks.lane.slices import PeerAnswer, ask_list
from peerlane.tasks.wire.bulk import SLICE
from peerlane.tasks.wire.model import PeerResult


@dataclass(frozen=True, slots=True)
class Target:
    """The gateway of a list; without one, the gateways of ``region`` with the labels ``where``."""

    gateway: str | None
    region: str | None = None
    where: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def chosen(self) -> bool:
        """Whether gateways are chosen for the list's items."""
        return self.gateway is None

    def __str__(self) -> str:
        if self.gateway is not None:
            return self.gateway
        return ", ".join([*([self.region] if self.region else []), *(f"{k}={v}" for k, v in self.where.items())])

    def about(self) -> dict[str, Any]:
        """The same for the document of the list's answers."""
        named = {"gateway": self.gateway, "region": self.region, "where": dict(self.where)}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True, slots=True)
class Batch:
    """The options of a batch."""

    #: Seconds for each slice; None for the setting.
    timeout: float | None
    #: Wishes outstanding at once on a gateway.
    window: int


@dataclass(slots=True)
class Answered:
    """The answers so far."""

    lines: Sequence[Line]
    by_place: dict[int, ListAnswer] = field(default_factory=dict[int, ListAnswer])
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def answers(self) -> list[tuple[Line, ListAnswer]]:
        """The answers in the order of the lines."""
        return [(self.lines[place], self.by_place[place]) for place in sorted(self.by_place)]

    @property
    def counts(self) -> Counter[str]:
        """The number of each outcome, and ``failed``."""
        return Counter(_outcome(reply.answer) for reply in self.by_place.values())

    @property
    def by_gateway(self) -> dict[str, Counter[str]]:
        """The same for each gateway that gave answers."""
        counts: dict[str, Counter[str]] = {}
        for reply in self.by_place.values():
            if reply.gateway is not None:
                counts.setdefault(reply.gateway, Counter())[_outcome(reply.answer)] += 1
        return dict(sorted(counts.items()))

    @property
    def status(self) -> int:
        """The exit status: the common one if all failed with the same status, else 1 if any failed."""
        if self.interrupted:
            return INTERRUPTED
        kinds = {
            reply.answer.exit_code if isinstance(reply.answer, PeerlaneError) else 0 for reply in self.by_place.values()
        }
        return max(kinds) if len(kinds) == 1 else int(any(kinds))


def _outcome(answer: PeerAnswer) -> str:
    return "failed" if isinstance(answer, PeerlaneError) else answer.outcome


def ask_many(session: Session, task: str, target: Target, lines: Sequence[Line], batch: Batch) -> Answered:
    """Send all, as lists. Ctrl-C ends it early and cancels what is outstanding.

    Raises:
        OutcomeUnknown: Redis could not be reached to choose gateways; nothing was sent.
    """
    done = Answered(lines)
    began = time.monotonic()
    items = [line.wish if task == names.CREATE_PEERS else _key(line) for line in lines]
    ask = _ask_chosen if target.chosen else _ask_one
    with (
        progress_bar(session.output) as bar,
        closing(ask(session, task, target, items, batch)) as answers,
    ):
        progress = bar.add_task(str(target), total=len(lines), rate="")
        try:
            for reply in answers:
                done.by_place[reply.place] = reply
                done.seconds = time.monotonic() - began
                bar.update(progress, advance=1, rate=f"{len(done.by_place) / max(done.seconds, 1e-6):,.0f}/s")
        except KeyboardInterrupt:
            done.interrupted = True
    done.seconds = time.monotonic() - began
    return done


def _ask_one(
    session: Session, task: str, target: Target, items: Sequence[object], batch: Batch
) -> Generator[ListAnswer]:
    timeout, (size, window) = batch.timeout or session.settings.timeout, _sizes(batch)
    gateway = target.gateway or ""
    asked = ask_list(session.app, task, gateway, items, timeout=timeout, size=size, window=window)
    with closing(asked) as answers:
        for place, answer in enumerate(answers):
            yield ListAnswer(place, answer, gateway)


def _ask_chosen(
    session: Session, task: str, target: Target, items: Sequence[object], batch: Batch
) -> Generator[ListAnswer]:
    places: list[int] = []
    for place, item in enumerate(items):
        if isinstance(item, Invalid):  # a line that could not be read belongs to no gateway
            yield ListAnswer(place, item)
        else:
            places.append(place)
    fleet, (size, window) = Fleet(session.app, timeout=batch.timeout), _sizes(batch)
    ask = fleet.creating if task == names.CREATE_PEERS else fleet.deleting
    sound = [items[place] for place in places]
    asked = ask(sound, region=target.region, where=target.where, size=size, window=window)
    with closing(asked) as answers:
        for reply in answers:
            yield ListAnswer(places[reply.place], reply.answer, reply.gateway)


def _sizes(batch: Batch) -> tuple[int, int]:
    """Wishes in a slice, and slices outstanding on a gateway."""
    return min(SLICE, batch.window), max(1, batch.window // SLICE)


def _key(line: Line) -> object:
    return line.wish if isinstance(line.wish, Invalid) else line.wish.get("public_key")


def create_many(session: Session, target: Target, lines: Sequence[Line], batch: Batch) -> None:
    """Create every line's peer through the bulk queue, and print each answer.

    Raises:
        Exit: some failed; all has been said.
    """
    _tell_all(session, target, ask_many(session, names.CREATE_PEERS, target, lines, batch), numbered=True)


def delete_many(session: Session, target: Target, lines: Sequence[Line], batch: Batch, *, numbered: bool) -> None:
    """Delete every line's peer, and print each answer; ``numbered``: they are lines of a file.

    Raises:
        Exit: some failed; all has been said.
    """
    _tell_all(session, target, ask_many(session, names.DELETE_PEERS, target, lines, batch), numbered=numbered)


def _tell_all(session: Session, target: Target, done: Answered, *, numbered: bool) -> None:
    try:
        tell(session.output, target, done, numbered=numbered)
    finally:
        if any(isinstance(reply.answer, OutcomeUnknown) for reply in done.by_place.values()):
            session.name_redis()


def tell(output: Output, target: Target, done: Answered, *, numbered: bool) -> None:
    """Print a line or object for each answer, then the counts; of chosen gateways, those of each too.

    Raises:
        Exit: not all of it was done.
    """
    if output.json:
        by_gateway = {name: dict(sorted(counts.items())) for name, counts in done.by_gateway.items()}
        output.document(
            {
                **target.about(),
                "results": [_object(line, reply, target, numbered=numbered) for line, reply in done.answers],
                "summary": {
                    "asked": len(done.lines),
                    "answered": len(done.by_place),
                    **{name: done.counts[name] for name in sorted(done.counts)},
                    **({"gateways": by_gateway} if target.chosen else {}),
                    "seconds": round(done.seconds, 3),
                },
            }
        )
    else:
        for line, reply in done.answers:
            output.out.print(_sentence(line, reply, target, numbered=numbered), soft_wrap=True)
        _sums(output, target, done)
    if done.status:
        raise Exit(done.status)


def _sums(output: Output, target: Target, done: Answered) -> None:
    answered = len(done.by_place)
    rate = f"{answered / done.seconds:,.0f}/s" if done.seconds > 0 else ""
    style = "red" if done.counts["failed"] else "green"
    output.note(f"{_counted(done.counts)} in {done.seconds:.1f} s, {rate}", style)
    for gateway, counts in done.by_gateway.items() if target.chosen else ():
        output.note(f"on {gateway}: {_counted(counts)}", style)
    if done.interrupted:
        output.warn(
            f"interrupted after {answered:,} of {len(done.lines):,}; what was outstanding is cancelled unless "
            "it had taken effect, and the same list can be asked again: what is there is answered with existing"
        )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()) if count) or "nothing"


def _object(line: Line, reply: ListAnswer, target: Target, *, numbered: bool) -> dict[str, Any]:
    about: dict[str, Any] = {"line": line.number} if numbered else {}
    if isinstance(reply.answer, PeerResult):
        return about | reply.answer.model_dump(mode="json")
    if line.public_key is not None:
        about["public_key"] = line.public_key
    if target.chosen and reply.gateway is not None:
        about["gateway"] = reply.gateway
    return {**about, "error": as_document(reply.answer)}


def _sentence(line: Line, reply: ListAnswer, target: Target, *, numbered: bool) -> Text:
    answer = reply.answer
    where = f"line {line.number}: " if numbered else ""
    on = f" on {reply.gateway}" if target.chosen and reply.gateway is not None else ""
    if isinstance(answer, PeerlaneError):
        return Text(f"{where}{answer.code}{on}  {line.public_key or '-'}  {answer.message}", "red")
    parts = (where + answer.outcome + on, answer.public_key, ", ".join(answer.allowed_ips))
    return Text("  ".join(part for part in parts if part))
