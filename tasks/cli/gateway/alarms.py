"""``peerlane gateway clear-alarm``: clears an alarm that only a person can clear."""

from __future__ import annotations

import click

from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.errors import Invalid
from peerlane.tasks.redis.errors import reaching
from peerlane.tasks.status import alarms


@click.command("clear-alarm", cls=Command)
@click.argument("name", type=GatewayName())
@click.argument("kind")
@pass_session
def clear_alarm(session: Session, name: str, kind: str) -> None:
    """Clear an alarm, such as key_changed, once what it tells of is done.

    One whose cause is still there is raised again.
    """
    with reaching("doing it again is harmless", refused="nothing was changed"):
        cleared = alarms.clear_alarm(lanes_of(session.app).redis, name, kind, "a person has cleared it")
    if not cleared:
        session.gateway(name).info()  # raises where no such gateway is registered
        raise Invalid(f"the gateway {name} has no alarm {kind}; `peerlane gateway show {name}` lists those it has")
    if session.output.json:
        session.output.document({"gateway": name, "alarm": kind, "outcome": "cleared"})
    else:
        session.output.note(f"the alarm {kind} of {name} is cleared", "green")
