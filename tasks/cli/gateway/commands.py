"""``peerlane gateway list | show | export``: the fleet, read from Redis. No gateway is asked."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peerlane.tasks.cli.gateway.backup import backup, restore
from peerlane.tasks.cli.gateway.drain import drain, resume
from peerlane.tasks.cli.gateway.import_ import import_peers
from peerlane.tasks.cli.gateway.maintenance import condition_facts, reconcile, sweep
from peerlane.tasks.cli.gateway.poison import poison
from peerlane.tasks.cli.gateway.remove import remove
from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Group
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.cli.tables import facts, gateway_facts, gateway_table
from peerlane.tasks.client.gateway import gateways
from peerlane.tasks.status.gateway_status import read_condition
from peerlane.tasks.wgfile.client_config import write_private
from peerlane.tasks.wgfile.export import render_export


@click.group("gateway", cls=Group)
def gateway() -> None:
    """Gateways: run one, and see the fleet."""


for command in (drain, resume, import_peers, sweep, reconcile):
    gateway.add_command(command)
for command in (backup, restore, poison, remove):
    gateway.add_command(command)


@gateway.command("list")
@pass_session
def list_gateways(session: Session) -> None:
    """Every gateway that ever registered, and its state."""
    found = gateways(session.app)
    alarms = {one.name: read_condition(session.app, one.name).alarms for one in found}
    if session.output.json:
        listed = [asdict(one) | {"alarms": [alarm.as_dict() for alarm in alarms[one.name]]} for one in found]
        session.output.document({"gateways": listed})
    elif found:
        session.output.show(gateway_table(found))
        for name, standing in alarms.items():
            for alarm in standing:
                session.output.warn(f"ALARM {name} {alarm.kind}: {alarm.message}")
    else:
        session.output.note("no gateway is registered; `peerlane gateway run NAME` starts one")


@gateway.command()
@click.argument("name", type=GatewayName())
@pass_session
def show(session: Session, name: str) -> None:
    """One gateway: key, endpoint, pools, state, lane, observer, alarms."""
    info = session.gateway(name).info()
    condition = read_condition(session.app, name)
    if session.output.json:
        session.output.document(asdict(info) | condition.as_dict())
    else:
        session.output.show(info.name)
        session.output.show(facts(gateway_facts(info) | condition_facts(condition)))


@gateway.command()
@click.argument("name", type=GatewayName())
@click.option("--output", "path", type=click.Path(path_type=Path), help="Write to this file (mode 0600).")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@pass_session
def export(session: Session, name: str, path: Path | None, *, force: bool) -> None:
    """A gateway's peers as a file for `wg syncconf`, `wg addconf` and `gateway import`.

    It holds the peers' preshared keys, and no private key.
    """
    one = session.gateway(name)
    info = one.info()
    peers = list(one.peers())
    text = "\n".join(render_export(info, peers)) + "\n"
    if path is not None:
        write_private(path, text, replace=force)
    if session.output.json:
        found: dict[str, object] = {"gateway": name, "peers": len(peers)}
        session.output.document(found | ({"config": text} if path is None else {"file": str(path)}))
    elif path is None:
        session.output.lines(text)
    else:
        session.output.note(f"{len(peers):,} peers of {name} are in {path}", "green")
