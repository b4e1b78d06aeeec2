"""``peerlane gateway backup | restore``: saves a gateway's state in a file, and restores it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from peerlane.tasks.admin.backup import Progress, back_up, restore_state
from peerlane.tasks.cli.console import progress_bar
from peerlane.tasks.cli.interrupts import ended_as_by_ctrl_c
from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.wgfile.client_config import refuse_if_there

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@click.argument("file", type=FILE)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@pass_session
@ended_as_by_ctrl_c()
def backup(session: Session, name: str, file: Path, *, force: bool) -> None:
    """Write a gateway's peers, addresses and activity to FILE, as they are at one moment. The gateway goes on.

    FILE holds the peers' preshared keys as Redis does: it gets mode 0600, keep it so.
    """
    if not force:
        refuse_if_there(file)
    with _bar(session, f"backup of {name}") as progress:
        done = back_up(session.settings, name, file, replace=force, progress=progress)
    if session.output.json:
        session.output.document({**asdict(done), "file": str(file)})
        return
    session.output.out.print(f"{done.peers:,} peers of {name} are in {file} ({done.size:,} bytes)", style="green")
    if done.unreadable:
        session.output.warn(f"{len(done.unreadable)} records do not parse; they are in the file as they are")


@click.command(cls=Command)
@click.argument("name", type=GatewayName())
@click.argument("file", type=FILE)
@click.option("--force", is_flag=True, help="Put it in the place of what the gateway holds in Redis now.")
@pass_session
@ended_as_by_ctrl_c()
def restore(session: Session, name: str, file: Path, *, force: bool) -> None:
    """Make a gateway's state what FILE says, all of it or nothing. Stop its writer first.

    At its next start the writer makes the device equal to what was restored.
    """
    with _bar(session, f"restore of {name}") as progress:
        done = restore_state(session.settings, name, file, force=force, progress=progress)
    if session.output.json:
        session.output.document(asdict(done))
        return
    taken = datetime.fromtimestamp(done.taken_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    instead = f" in the place of {done.replaced:,}" if done.replaced else ""
    session.output.out.print(f"{done.peers:,} peers of {name} are as they were at {taken}{instead}", style="green")
    if done.unreadable:
        session.output.warn(f"{len(done.unreadable)} records do not parse; they are as they were")
    session.output.note(f"start the gateway: `peerlane gateway run {name}` makes its device equal to them")


@contextmanager
def _bar(session: Session, title: str) -> Generator[Progress]:
    with progress_bar(session.output) as bar:
        task = bar.add_task(title, total=None, rate="")

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield progress
