"""``peerlane gateway alive``: a health check for compose, Kubernetes and load balancers."""

from __future__ import annotations

import click

from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Command, Exit
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.status.liveness import read_lane


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@click.option("--ready", is_flag=True, help="Fail while it brings its peers back, too.")
@pass_session
def alive(session: Session, name: str, *, ready: bool) -> None:
    """Whether a gateway's writer lives and its lane is served: status 0 or 1. Reads one hash.

    A writer that brings its peers back is alive; with --ready it has to take requests. Status 3: no such gateway has
    registered, or Redis cannot be reached, which starting the gateway anew would not mend.
    """
    lane = read_lane(session.app, name)
    well = lane.state not in ("down", "stuck") and not (ready and lane.state == "recovering")
    if session.output.json:
        silent = None if lane.silent_for is None else lane.silent_for / 1000
        document = {
            "gateway": name,
            "alive": well,
            "state": lane.state,
            "silent_for": silent,
            "idle_for": lane.idle_for,
        }
        session.output.document(document)
    elif well:
        session.output.show(f"{name} is {lane.state}")
    else:
        session.output.warn(f"{name} is {'stopped' if lane.stopped else lane.state}")
    raise Exit(0 if well else 1)
