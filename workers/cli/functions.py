"""``peerlane functions``: the library that an administrator loads into Redis, so that no gateway may send Lua."""

from __future__ import annotations

import click

from peerlane.tasks.cli.program import Command
from peerlane.tasks.cli.session import Session, pass_session


@click.command("functions", cls=Command)
@click.option("--load", is_flag=True, help="Load them into Redis; takes an administrator's PEERLANE_REDIS_URL.")
@pass_session
def functions(session: Session, *, load: bool) -> None:
    """The library of Redis functions that writers call, printed or loaded.

    Load it before a new version's first writer starts. Each version has its own; they do not disturb each other.
    """
    from redis.exceptions import RedisError

    from peerlane.config.redis.client import connect
    from peerlane.config.redis.failures import reason
    from peerlane.tasks.errors import StorageError
    from peerlane.workers.store import procedures

    if not load:
        if session.output.json:
            session.output.document({"library": f"peerlane_{procedures.digest()}", "code": procedures.library()})
        else:
            session.output.lines(procedures.library())
        return
    redis = connect(session.settings)
    try:
        name = procedures.load(redis)
    except RedisError as error:
        raise StorageError(f"the functions were not loaded: {reason(error)}") from None
    finally:
        redis.close()
    if session.output.json:
        session.output.document({"library": name, "loaded": True})
    else:
        session.output.note(f"loaded the library {name}", "green")
