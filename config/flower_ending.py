"""Makes Flower end on SIGTERM even while it answers a request.

Its own handler raises SystemExit wherever its main thread happens to be. Within a request tornado takes that for the
request's failure, logs it and goes on: the signal is lost, and Flower serves until it is killed. Its loop can hear of
the same signal, and calls back between requests, where nobody takes it for anything else.
"""

from __future__ import annotations

import signal
import sys
from typing import Any, cast

import click


def hear_sigterm(**_: Any) -> None:
    """For Celery's ``import_modules``, which Flower sends when its loop is made and does not run yet."""
    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "flower":  # a worker, beat, or no command at all
        return
    from tornado.ioloop import IOLoop  # noqa: PLC0415 - there with Flower alone

    # Flower then sets a handler in place of the loop's; the loop is told of the signal all the same.
    cast("Any", IOLoop.current()).asyncio_loop.add_signal_handler(signal.SIGTERM, sys.exit, 0)
