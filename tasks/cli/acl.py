"""``peerlane acl``: prints the Redis users of a fleet. Does not connect to Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import cast

import click

from peerlane.config.redis.url import database
from peerlane.tasks.admin.acl import ROLES, Form, Role, default_user_off, users
from peerlane.tasks.cli.parameters import GatewayName
from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session


@click.command("acl", cls=Command)
@click.argument("gateways", metavar="GATEWAY...", nargs=-1, required=True, type=GatewayName())
@click.option("--role", "roles", multiple=True, type=click.Choice([*ROLES, "all"]), help="Repeatable.  [default: all]")
@click.option("--passwords", is_flag=True, help="Make passwords. They are in the output, and nowhere else.")
@click.option(
    "--form",
    type=click.Choice(["aclfile", "setuser"]),
    default="aclfile",
    show_default=True,
    help="Lines of Redis' aclfile, or commands.",
)
@click.option("--redis-7.0", "oldest", is_flag=True, help="For a server older than Redis 7.2 or Valkey.")
@pass_session
def acl(
    session: Session, gateways: Sequence[str], roles: Sequence[str], *, passwords: bool, form: str, oldest: bool
) -> None:
    """Redis users with the least rights for each part.

    Name all gateways of the fleet for one whole aclfile. A gateway's writer and observer get users of their own;
    the API and the operator get one for all the gateways named.

    Without --passwords each line holds #CHANGE-ME, which Redis refuses to load: put >PASSWORD in its place.
    """
    chosen = cast("Sequence[Role]", ROLES if not roles or "all" in roles else tuple(dict.fromkeys(roles)))
    chosen_users = users(tuple(dict.fromkeys(gateways)), chosen, database=database(session.settings))
    made = {user.name: secrets.token_urlsafe(24) if passwords else None for user in chosen_users}
    lines = {user.name: user.line(cast("Form", form), made[user.name], oldest=oldest) for user in chosen_users}
    closed = default_user_off(cast("Form", form)) if "admin" in chosen else None
    if session.output.json:
        described = [
            {"user": user.name, "role": user.role, "line": lines[user.name]}
            | ({"password": made[user.name]} if passwords else {})
            for user in chosen_users
        ]
        session.output.document({"users": described} | ({"default": closed} if closed else {}))
        return
    session.output.lines("\n".join([*lines.values(), *([closed] if closed else [])]) + "\n")
    session.output.note("the writers' functions are loaded by the administrator: `peerlane functions --load`")
