"""``peerlane doctor``: checks this host and its Redis, says what to do; shows settings with secrets hidden."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Command, Exit
from peerlane.tasks.cli.session import Session, pass_session

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command("doctor", cls=Command)
@click.argument("name", type=GatewayName(), required=False)
@click.option("--settings", "with_settings", is_flag=True, help="Show every setting too, secrets hidden.")
@pass_session
def doctor(session: Session, name: str | None, *, with_settings: bool) -> None:
    """Look at this host, its Redis and the fleet; change nothing.

    Exit status 1 if something fails. With NAME, or PEERLANE_GATEWAY set, it judges this host as that gateway's too:
    forwarding, endpoint, UDP port and key.
    """
    from peerlane.config.settings import shown
    from peerlane.workers.cli.doctor_checks import examine

    if name is not None:
        session.overrides["gateway"] = name
    checks = list(examine(session.settings))
    failed = any(check.verdict == "failed" for check in checks)
    if session.output.json:
        settings = {"settings": shown(session.settings)} if with_settings else {}
        session.output.document({"checks": [check.as_dict() for check in checks], **settings})
        raise Exit(int(failed))
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", ""):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(Text(check.verdict, _STYLES[check.verdict]), check.what, check.sentence)
    session.output.show(table)
    if with_settings:
        listed = Table(box=None, pad_edge=False)
        listed.add_column("setting")
        listed.add_column("value", overflow="fold")
        for setting, value in shown(session.settings).items():
            listed.add_row(f"PEERLANE_{setting.upper()}", "" if value is None else str(value))
        session.output.show(listed)
    raise Exit(int(failed))
