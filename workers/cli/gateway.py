"""``peerlane gateway …`` as a gateway has it: the commands of API hosts, and ``run``."""

from __future__ import annotations

from peerlane.tasks.cli.gateway.commands import gateway
from peerlane.workers.cli.run import run

gateway.add_command(run)

__all__ = ["gateway"]
