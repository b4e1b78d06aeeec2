"""``peerlane gateway drain | resume``: stops and resumes taking new peers."""

from __future__ import annotations

from dataclasses import asdict

import click

from peerlane.tasks.admission.drain import Switched
from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@pass_session
def drain(session: Session, name: str) -> None:
    """Let a gateway take no new peers; deletes and sweeps go on. `gateway resume` ends it."""
    done = session.gateway(name).drain()
    _tell(session, done, "is being drained: it takes no new peers", "was being drained already")


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@pass_session
def resume(session: Session, name: str) -> None:
    """Let a drained gateway take peers again."""
    _tell(session, session.gateway(name).resume(), "takes peers again", "was taking peers already")


def _tell(session: Session, done: Switched, changed: str, unchanged: str) -> None:
    if session.output.json:
        session.output.document(asdict(done))
    else:
        session.output.out.print(f"{done.gateway} {changed if done.before != done.after else unchanged}", style="green")
