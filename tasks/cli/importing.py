"""``peerlane gateway import``: a WireGuard file, or the live device, into Redis."""

from __future__ import annotations

from itertools import islice
from typing import BinaryIO

import click
from rich.table import Table

from tasks.cli.output import as_document
from tasks.cli.parameters import GatewayName
from tasks.cli.program import Command, Told
from tasks.cli.session import Session, pass_session
from tasks.errors import Invalid
from tasks.imports import MAX_BYTES, TIMEOUT, ImportClash, Imported, UnreadableConf, import_file, import_live

#: Rows of a table for people; --json gives all.
ROWS = 200


@click.command("import", cls=Command)
@click.argument("name", type=GatewayName())
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--live", is_flag=True, help="Take over what the device holds and Redis does not know.")
@click.option("--dry-run", is_flag=True, help="Only look for problems and conflicts; change nothing.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 600, min_open=True),
    default=TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait; then the import is cancelled.",
)
@pass_session
def import_peers(
    session: Session, name: str, file: BinaryIO | None, *, live: bool, dry_run: bool, timeout: float
) -> None:
    """Take over the peers of a wg or wg-quick FILE (- is stdin), or with --live those of the device: all or none.

    Sessions that run go on. Names in comments (# friendly_name = …, ### Client …) become labels, # label.NAME = VALUE
    any label. What `gateway export` wrote is read back to the same peers.
    """
    if live == (file is not None):
        raise click.UsageError("name a FILE, or --live")
    if live and dry_run:
        raise click.UsageError(
            "--dry-run looks at a FILE; `gateway reconcile --dry-run` lists a device's unknown peers"
        )
    if file is None:
        _tell(session, import_live(name, app=session.app, timeout=timeout))
        return
    try:
        data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Invalid(f"the file cannot be read: {error.strerror}") from None
    try:
        _tell(session, import_file(data, name, app=session.app, dry_run=dry_run, timeout=timeout))
    except (UnreadableConf, ImportClash) as error:
        raise _told(session, error) from None


def _tell(session: Session, done: Imported) -> None:
    if session.output.json:
        session.output.document(done.model_dump())
        return
    verb = "would be imported" if done.outcome == "would_import" else "imported"
    session.output.out.print(
        f"{done.created:,} peers {verb} into {done.gateway}, {done.existing:,} were there already", style="green"
    )


def _told(session: Session, error: UnreadableConf | ImportClash) -> Told:
    output = session.output
    if output.json:
        output.error(as_document(error))
        return Told(error.exit_code)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("line", justify="right", no_wrap=True)
    if isinstance(error, ImportClash):
        table.add_column("public key", no_wrap=True, min_width=44)
        table.add_column("conflict", overflow="fold")
        for clash in islice(error.clashes, ROWS):
            table.add_row(str(clash.line), clash.public_key, clash.sentence)
        count, what = len(error.clashes), "conflicts"
    else:
        table.add_column("problem", overflow="fold")
        for problem in islice(error.problems, ROWS):
            table.add_row(str(problem.line), problem.sentence)
        count, what = len(error.problems), "problems"
    output.show(table)
    more = f", the first {ROWS} of them above; --json lists all" if count > ROWS else ""
    output.error({"message": f"nothing was imported: {count:,} {what}{more}"})
    return Told(error.exit_code)
