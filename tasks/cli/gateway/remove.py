"""``peerlane gateway remove``: removes a gateway from Redis."""

from __future__ import annotations

from dataclasses import asdict

import click

from peerlane.tasks.admin.removal import remove_gateway
from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@click.option("--force", is_flag=True, help="Also with peers, or with requests that wait.")
@pass_session
def remove(session: Session, name: str, *, force: bool) -> None:
    """Forget a gateway that is gone: all that Redis holds of it. Stop it first.

    Its device is not touched. A gateway of that name can be started anew.
    """
    done = remove_gateway(session.settings, name, force=force)
    if session.output.json:
        session.output.document(asdict(done))
        return
    counted = [(done.peers, "peer"), (done.requests, "waiting request")]
    listed = " and ".join(f"{count:,} {noun}{'s' * (count != 1)}" for count, noun in counted if count)
    session.output.out.print(f"{name} is forgotten{f', with {listed}' if listed else ''}", style="green")
    if done.peers:
        session.output.note("its device may hold them still: delete that on its host, or start the gateway anew")
