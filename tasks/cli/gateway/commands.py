"""``peerlane gateway list | show | export``: read from Redis alone; no request is sent to a gateway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from peerlane.config.hosts import endpoint_doubt
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.cli.counting import counting
from peerlane.tasks.cli.gateway.maintenance import status_facts
from peerlane.tasks.cli.interrupts import ended_as_by_ctrl_c
from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.cli.tables import facts, gateway_facts, gateway_table, span
from peerlane.tasks.status.fleet_snapshot import FleetReader, FleetSnapshot, read_gateway
from peerlane.tasks.status.gateway_status import GatewayStatus
from peerlane.tasks.wgfile.client_config import private_file
from peerlane.tasks.wgfile.export import render_in_order


@click.command("list", cls=Command)
@pass_session
def list_gateways(session: Session) -> None:
    """Every gateway that ever registered, and its state."""
    snapshot = FleetReader(lanes_of(session.app).redis).read()
    if session.output.json:
        listed = [
            asdict(status.info)
            | {
                "alarms": [alarm.as_dict() for alarm in status.alarms],
                "visible": status.visible,
                "observer_silent_for": status.observer_silent_for,
                "beat_silent_for": status.beat_silent_for,
                "set_aside": status.set_aside,
                "writer_age": status.writer_age,
                "endpoint_doubt": endpoint_doubt(status.info.endpoint),
            }
            for status in snapshot.gateways
        ]
        session.output.document({"gateways": listed, "beat_silent_for": snapshot.beat_silent_for})
    elif snapshot.gateways:
        session.output.show(gateway_table((status.info for status in snapshot.gateways), session.output.out.width))
        _warn(session, snapshot)
    else:
        session.output.note("no gateway is registered; `peerlane gateway run NAME` starts one")


def _warn(session: Session, snapshot: FleetSnapshot) -> None:
    """Print below the table what needs a person's attention."""
    for status in snapshot.gateways:
        for alarm in status.alarms:
            session.output.warn(f"ALARM {status.gateway} {alarm.kind}: {alarm.message} ({alarm.runbook})")
        if (waiting := max(status.lane.waiting, status.lane.waiting_bulk)) >= status.lane.cap:
            session.output.warn(
                f"{status.gateway}: its lane is full: {waiting:,} wait in a queue, and more are refused"
            )
        if (doubt := endpoint_doubt(status.info.endpoint)) is not None:
            session.output.warn(f"{status.gateway}: clients may not reach its endpoint: {doubt}")
        for sentence in _starts_and_ends(status):
            session.output.warn(f"{status.gateway}: {sentence}")
        if status.set_aside:
            count = f"{status.set_aside:,} message{'' if status.set_aside == 1 else 's'} set aside"
            session.output.warn(f"{status.gateway}: {count}: see `peerlane gateway poison {status.gateway}`")
    if hidden := sum(not status.visible for status in snapshot.gateways):
        session.output.warn(f"alarms and observers of {hidden} gateways are not for this Redis user to see")
    silent = snapshot.beat_silent_for
    if silent is not None:
        overdue = all(status.beat_missing for status in snapshot.gateways if status.observed)
        words = f"beat: last asked for a sweep or a reconciliation {span(silent)} ago"
        session.output.note(f"{words}: is one running?" if overdue else words, "yellow" if overdue else "dim")


def _starts_and_ends(status: GatewayStatus) -> Iterator[str]:
    """Say which of the gateway's processes was started a short while ago or is missing."""
    if status.recovering:
        yield f"{status.recovering:,} peers are still to be added to its device after a start"
    if status.lane.live and status.visible and not status.observed:
        silent = status.observer_silent_for
        since = "no observer is running" if silent is None else f"its observer has been silent for {span(silent)}"
        yield f"{since}: nothing is swept, counted or compared"
    if status.restarted:
        ago = span(status.writer_age or 0)
        yield f"its writer was started again {ago} ago, epoch {status.info.epoch}: its log says why"


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@pass_session
def show(session: Session, name: str) -> None:
    """One gateway: key, endpoint, pools, state, lane, observer, alarms."""
    status = read_gateway(session.app, name)
    if session.output.json:
        session.output.document(asdict(status.info) | status.as_dict())
    else:
        session.output.show(name)
        session.output.show(facts(gateway_facts(status.info, now=status.now) | status_facts(status)))


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@click.option("--output", "path", type=click.Path(path_type=Path), help="Write to this file (mode 0600).")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@pass_session
@ended_as_by_ctrl_c()
def export(session: Session, name: str, path: Path | None, *, force: bool) -> None:
    """A gateway's peers as a file for `wg syncconf`, `wg addconf` and `gateway import`.

    It holds the peers' preshared keys, and no private key.
    """
    client = session.gateway(name)
    info = client.info()
    output = session.output
    with counting(output, f"export of {name}", info.peers) as counted:
        lines = (line + "\n" for line in render_in_order(info, counted(client.peers_in_order())))
        if path is not None:
            with private_file(path, replace=force) as file:
                file.writelines(line.encode() for line in lines)
        elif output.json:
            text = "".join(lines)
            output.document({"gateway": name, "peers": counted.count, "config": text})
        else:
            for line in lines:
                output.lines(line)
    if path is not None and output.json:
        output.document({"gateway": name, "peers": counted.count, "file": str(path)})
    elif path is not None:
        output.note(f"{counted.count:,} peers of {name} are in {path}", "green")
