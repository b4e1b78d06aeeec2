"""``peerlane gateway …``: the commands of API hosts, and ``run``. Each is loaded when it is called."""

from __future__ import annotations

import click

from peerlane.tasks.cli.program import Group

_TASKS = "peerlane.tasks.cli.gateway"
#: A gateway's processes start by ``run``: they load no other command.
ON_USE = {
    "alive": (f"{_TASKS}.alive:alive", "Whether a gateway's writer lives and its lane is served: status 0 or 1."),
    "backup": (
        f"{_TASKS}.backup:backup",
        "Write a gateway's peers, addresses and activity to FILE, as they are at one moment.",
    ),
    "clear-alarm": (
        f"{_TASKS}.alarms:clear_alarm",
        "Clear an alarm, such as key_changed, once what it tells of is done.",
    ),
    "drain": (f"{_TASKS}.drain:drain", "Let a gateway take no new peers; deletes and sweeps go on."),
    "export": (
        f"{_TASKS}.commands:export",
        "A gateway's peers as a file for `wg syncconf`, `wg addconf` and `gateway import`.",
    ),
    "import": (
        f"{_TASKS}.import_:import_peers",
        "Take over the peers of a wg or wg-quick FILE (- is stdin), or with --live those of the device: all or none.",
    ),
    "list": (f"{_TASKS}.commands:list_gateways", "Every gateway that ever registered, and its state."),
    "poison": (
        f"{_TASKS}.poison:poison",
        "Messages that NAME has set aside: those that ended its writer three times, and those that were no request.",
    ),
    "reconcile": (
        f"{_TASKS}.maintenance:reconcile",
        "Compare a gateway's device with Redis, and mend what differs by the smallest change.",
    ),
    "remove": (f"{_TASKS}.remove:remove", "Forget a gateway that is gone: all that Redis holds of it."),
    "restore": (f"{_TASKS}.backup:restore", "Make a gateway's state what FILE says, all of it or nothing."),
    "resume": (f"{_TASKS}.drain:resume", "Let a drained gateway take peers again."),
    "run": (
        "peerlane.workers.cli.run:run",
        "Run a gateway's writer and observer, in the foreground, until SIGTERM or Ctrl-C.",
    ),
    "show": (f"{_TASKS}.commands:show", "One gateway: key, endpoint, pools, state, lane, observer, alarms."),
    "sweep": (
        f"{_TASKS}.maintenance:sweep",
        "Remove a gateway's stale peers: expired, never handshaked, or idle for too long.",
    ),
}


@click.group("gateway", cls=Group, on_use=ON_USE)
def gateway() -> None:
    """Gateways: run one, and see the fleet."""
