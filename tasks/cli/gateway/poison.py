"""``peerlane gateway poison``: shows, replays and drops messages that a gateway has set aside."""

from __future__ import annotations

from datetime import UTC, datetime

import click
from rich.table import Table

from peerlane.tasks.admin import poison_messages
from peerlane.tasks.admission.lanes import Lanes, lanes_of
from peerlane.tasks.cli.interrupts import ended_as_by_ctrl_c
from peerlane.tasks.cli.parameters import GatewayName, Seconds
from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.cli.tables import facts
from peerlane.tasks.redis.errors import reaching, reading

#: Rows of a table for people; --json gives all.
ROWS = 100


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@click.option("--show", metavar="ID", help="One message: what it asks for, without secrets.")
@click.option("--replay", metavar="ID", help="Ask for the same again, as a new request; forget the message if done.")
@click.option("--drop", metavar="ID", help="Forget one message.")
@click.option("--drop-all", is_flag=True, help="Forget all of them.")
@click.option("--timeout", type=Seconds(0, 600, min_open=True), metavar="SECONDS", help="For --replay.")
@pass_session
@ended_as_by_ctrl_c()
def poison(  # noqa: PLR0917 - one parameter for each option
    session: Session,
    name: str,
    show: str | None,
    replay: str | None,
    drop: str | None,
    drop_all: bool,  # noqa: FBT001 - click names it
    timeout: float | None,
) -> None:
    """Messages that NAME has set aside: those that ended its writer three times, and those that were no request."""
    if sum(map(bool, (show, replay, drop, drop_all))) > 1:
        raise click.UsageError("one of --show, --replay, --drop and --drop-all at a time")
    lanes = lanes_of(session.app)
    if show:
        _show(session, lanes, name, show)
    elif replay:
        within = timeout or session.settings.timeout
        with reaching(refused="the message stays"):
            result = poison_messages.replay(session.app, lanes.redis, name, replay, timeout=within)
        _say(session, {"gateway": name, "replayed": replay, "result": result}, f"done: {result.get('outcome')}")
    elif drop:
        with reaching("doing it again is harmless", refused="nothing was changed"):
            poison_messages.drop(lanes.redis, name, drop)
        _say(session, {"gateway": name, "dropped": 1}, f"{drop} is forgotten")
    elif drop_all:
        with reaching("doing it again is harmless", refused="nothing was changed"):
            count = poison_messages.drop_all(lanes.redis, name)
        _say(session, {"gateway": name, "dropped": count}, f"{count:,} messages are forgotten")
    else:
        _list(session, lanes, name)


def _say(session: Session, document: dict[str, object], sentence: str) -> None:
    if session.output.json:
        session.output.document(document)
    else:
        session.output.out.print(sentence, style="green")


def _show(session: Session, lanes: Lanes, name: str, wanted: str) -> None:
    with reading():
        message = poison_messages.find(lanes.redis, name, wanted)
        about = poison_messages.shown(message, lanes.stored(message.request_id) if message.request_id else None)
    if session.output.json:
        session.output.document(about)
        return
    arguments = about.pop("arguments", {})
    about["at"] = _time(message.at)
    session.output.show(facts({title.replace("_", " "): value for title, value in (about | arguments).items()}))


def _list(session: Session, lanes: Lanes, name: str) -> None:
    with reading():
        messages = poison_messages.set_aside_messages(lanes.redis, name)
    if not messages:
        session.gateway(name).info()  # raises where no such gateway is registered
    if session.output.json:
        documents = [
            {
                "id": message.id,
                "at": message.at // 1000,
                "reason": message.reason,
                "request_id": message.request_id,
                "size": message.size,
            }
            for message in messages
        ]
        session.output.document({"gateway": name, "messages": documents})
        return
    if not messages:
        session.output.note(f"{name} has set nothing aside", "green")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("id", "when", "bytes", "reason"):
        table.add_column(title, no_wrap=title != "reason", justify="right" if title == "bytes" else "left")
    for message in messages[:ROWS]:
        table.add_row(message.id, _time(message.at), f"{message.size:,}", message.reason)
    session.output.show(table)
    if len(messages) > ROWS:
        session.output.note(f"the latest {ROWS} of {len(messages):,}; --json lists all")


def _time(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
