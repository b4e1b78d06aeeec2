"""``peerlane gateway import``: imports a WireGuard file or the live device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import BinaryIO

import click
from rich.table import Table

from peerlane.tasks.admin.import_refusals import AdoptionClash, ImportClash, NotTaken, UnreadableConf
from peerlane.tasks.admin.peer_import import (
    MAX_BYTES,
    TIMEOUT,
    Imported,
    import_file,
    import_live,
)
from peerlane.tasks.cli.counting import counting
from peerlane.tasks.cli.interrupts import ended_as_by_ctrl_c
from peerlane.tasks.cli.output import as_document
from peerlane.tasks.cli.parameters import GatewayName, Seconds
from peerlane.tasks.cli.program import Command, Exit
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.errors import Invalid

#: Rows of a table for people; --json gives all.
ROWS = 200


@click.command("import", cls=Command)
@click.argument("name", type=GatewayName())
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--live", is_flag=True, help="Take over what the device holds and Redis does not know.")
@click.option(
    "--leave-out", is_flag=True, help="With --live: leave peers without allowed IPs on the device, unknown to Redis."
)
@click.option("--dry-run", is_flag=True, help="Only look for problems and conflicts; change nothing.")
@click.option(
    "--timeout",
    type=Seconds(0, 600, min_open=True),
    default=TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait; then the import is cancelled.",
)
@pass_session
@ended_as_by_ctrl_c()
def import_peers(
    session: Session, name: str, file: BinaryIO | None, *, live: bool, leave_out: bool, dry_run: bool, timeout: float
) -> None:
    """Take over the peers of a wg or wg-quick FILE (- is stdin), or with --live those of the device: all or none.

    Sessions that run go on. Names in comments (# friendly_name = …, ### Client …, # Name: …, a word beside [Peer])
    become labels, # label.NAME = VALUE any label. What `gateway export` wrote is read back to the same peers.

    A device's peers without allowed IPs cannot be taken over: they are listed and refuse the import, unless
    --leave-out. What becomes of them then, PEERLANE_UNKNOWN_PEERS says: a start or a reconciliation removes them.
    """
    if live == (file is not None):
        raise click.UsageError("name a FILE, or --live")
    if leave_out and not live:
        raise click.UsageError("--leave-out is for --live")
    if file is None:
        try:
            done = import_live(name, app=session.app, leave_out=leave_out, dry_run=dry_run, timeout=timeout)
        except AdoptionClash as error:
            raise _print_not_taken(session, error) from None
        _tell(session, done)
        return
    try:
        data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Invalid(f"the file cannot be read: {error.strerror}") from None
    try:
        with counting(session.output, f"addresses of {name}", None) as counted:
            done = import_file(data, name, app=session.app, dry_run=dry_run, timeout=timeout, counted=counted)
        _tell(session, done)
    except (UnreadableConf, ImportClash) as error:
        raise _print_refusal(session, error) from None


def _tell(session: Session, done: Imported) -> None:
    if session.output.json:
        session.output.document(done.model_dump(mode="json"))
        return
    verb = "would be imported" if done.outcome == "would_import" else "imported"
    session.output.out.print(
        f"{done.created:,} peers {verb} into {done.gateway}, {done.existing:,} were there already", style="green"
    )
    if done.comments_left_out:
        lines = ", ".join(map(str, done.comment_lines[:8])) + ", …" * (done.comments_left_out > 8)
        session.output.warn(
            f"of {done.comments_left_out:,} comments nothing is kept (lines {lines}): they are no name and no label"
            " that this program knows"
        )
    if done.left_out:
        session.output.show(_listed(done.left_out))
        session.output.warn(
            f"{len(done.left_out) + done.unlisted:,} peers without allowed IPs stay on the device, unknown to Redis:"
            " unless PEERLANE_UNKNOWN_PEERS is keep or adopt, the next reconciliation or start removes them"
        )


def _print_refusal(session: Session, error: UnreadableConf | ImportClash) -> Exit:
    output = session.output
    if output.json:
        output.error(as_document(error))
        return Exit(error.exit_code)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("line", justify="right", no_wrap=True)
    if isinstance(error, ImportClash):
        table.add_column("public key", no_wrap=True, min_width=44)
        table.add_column("conflict", overflow="fold")
        for clash in islice(error.clashes, ROWS):
            table.add_row(str(clash.line), clash.public_key, clash.sentence)
        count, noun = len(error.clashes), "conflicts"
    else:
        table.add_column("problem", overflow="fold")
        for problem in islice(error.problems, ROWS):
            table.add_row(str(problem.line), problem.sentence)
        count, noun = len(error.problems), "problems"
    output.show(table)
    more = f", the first {ROWS} of them above; --json lists all" if count > ROWS else ""
    output.error({"message": f"nothing was imported: {count:,} {noun}{more}"})
    return Exit(error.exit_code)


def _print_not_taken(session: Session, error: AdoptionClash) -> Exit:
    output, count = session.output, len(error.not_taken) + error.unlisted
    if output.json:
        output.error(as_document(error))
        return Exit(error.exit_code)
    output.show(_listed(error.not_taken))
    more = f", the first {ROWS} of them above; --json lists more" if count > ROWS else ""
    output.error({"message": f"nothing was imported: {count:,} peers cannot be taken over{more}"})
    if any(peer.kind == "no_allowed_ips" for peer in error.not_taken):
        output.note("give them allowed IPs, remove them with `wg set`, or say --leave-out")
    return Exit(error.exit_code)


def _listed(peers: Sequence[NotTaken]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("public key", no_wrap=True, min_width=44)
    table.add_column("not taken over, because", overflow="fold")
    for peer in peers[:ROWS]:
        table.add_row(peer.public_key, peer.message)
    return table
