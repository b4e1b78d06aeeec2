"""``peerlane``: the client's commands, and those that run on a gateway. Help does not load pyroute2."""

from __future__ import annotations

import click

from peerlane.tasks.cli.program import Program
from peerlane.tasks.cli.session import Session, pass_session

#: Commands that are loaded when they are called: ``--version`` and ``--help`` need neither Celery nor Redis.
ON_USE = {
    "acl": ("peerlane.tasks.cli.acl:acl", "Redis users with the least rights for each part."),
    "doctor": ("peerlane.workers.cli.doctor:doctor", "Look at this host, its Redis and the fleet; change nothing."),
    "exporter": (
        "peerlane.tasks.cli.exporter:exporter",
        "Tell Prometheus what gateways tell in Redis, over HTTP, until SIGTERM or Ctrl-C.",
    ),
    "functions": (
        "peerlane.workers.cli.functions:functions",
        "The library of Redis functions that writers call, printed or loaded.",
    ),
    "gateway": ("peerlane.workers.cli.gateway:gateway", "Gateways: run one, and see the fleet."),
    "peer": ("peerlane.tasks.cli.peer.commands:peer", "Peers: create, delete, show, list."),
    "top": (
        "peerlane.tasks.cli.top.command:top",
        "Watch the fleet, or some gateways, until Ctrl-C; those in trouble stand first.",
    ),
}


@click.group(cls=Program, on_use=ON_USE, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--redis", "redis_url", metavar="URL", help="redis://, rediss:// or unix:///path; see PEERLANE_REDIS_URL."
)
@click.version_option(package_name="peerlane", message="%(prog)s %(version)s")
@pass_session
def main(session: Session, redis_url: str | None) -> None:
    """WireGuard peers for a fleet of gateways: one lane and one writer per gateway.

    Settings come from PEERLANE_* variables or /etc/peerlane/peerlane.toml. Exit status: 0 done, 1 refused or failed,
    2 usage, 3 timed out, unavailable or unknown.
    """
    if redis_url is not None:
        session.overrides["redis_url"] = redis_url


@main.command()
@click.option("--peers", type=click.IntRange(10, 50_000), default=1000, show_default=True, help="How many to create.")
@click.option("--gateways", "count", type=click.IntRange(1, 8), default=2, show_default=True, help="How many to start.")
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
@click.option("--flower/--no-flower", default=True, help="Start Flower too, if it is installed.")
@pass_session
def demo(session: Session, peers: int, count: int, *, keep: bool, flower: bool) -> None:
    """Everything on this machine: a server, gateways, beat, Flower; then it ends by itself.

    Needs no root, no Redis and no WireGuard, and uses the kernel's WireGuard where it may.
    """
    from peerlane.workers.demo.demo import run_demo

    run_demo(session.output, peers=peers, count=count, keep=keep, flower=flower)


if __name__ == "__main__":
    main()
