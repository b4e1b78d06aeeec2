"""``peerlane gateway …`` on a gateway: the commands of API hosts, and ``run``."""

from __future__ import annotations

from peerlane.tasks.cli.gateway.commands import gateway
from peerlane.workers.cli.run import run

gateway.add_command(run)

__all__ = ["gateway"]
