"""The headline: one create and one delete at the caller, however many peers the gateway holds.

    make bench-kernel ARGS='[--peers 0,20000,…] [--requests N] [--json FILE] [--svg FILE]'

Real queue, real server (AOF, fsync always), real worker process, real device. Beside it, on the same kernel with the
same peers, what gateways did before: one changed line in a rendered wg.conf and ``wg syncconf``. A kernel
elsewhere needs 2 GB of memory for 100,000 peers.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench_plot import plot
from bench_report import Advance, Bench, Figures, quantile, run
from bench_site import NAME, site
from bench_timing import timed
from gateways import GatewayProcess
from keys import some_key
from rich.table import Table
from servers import RedisServer

from peerlane.config import names
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import Peer

POOL = Prefix.parse("10.8.0.0/13")
INTERFACE, BASELINE = "plbench0", "plbench1"


def many_peers(count: int) -> list[Peer]:
    """Peers with one address each, the pool's first ones left free."""
    return [
        Peer(public_key=some_key(), allowed_ips=(Prefix.host(4, POOL.network + 100_000 + number),), created_at=1)
        for number in range(count)
    ]


def store(server: RedisServer, gateway: str, peers: list[Peer]) -> None:
    """Put them where a writer finds them at its start."""
    for start in range(0, len(peers), 5_000):
        pipe = server.redis.pipeline(transaction=False)
        for peer in peers[start : start + 5_000]:
            pipe.hset(names.peers_key(gateway), peer.public_key, peer.record())
            pipe.hset(names.addresses_key(gateway), str(peer.allowed_ips[0]), peer.public_key)
        pipe.execute()


def syncconf(peers: list[Peer], directory: Path, rounds: int = 3) -> float:
    """Milliseconds for one more peer by rendering the whole file and ``wg syncconf``, on a device of its own."""
    subprocess.run(["ip", "link", "add", BASELINE, "type", "wireguard"], check=True)
    path = directory / "wg.conf"
    try:
        sections = [f"[Peer]\nPublicKey = {p.public_key}\nAllowedIPs = {p.allowed_ips[0]}\n" for p in peers]

        def write(extra: int) -> None:
            more = f"[Peer]\nPublicKey = {some_key()}\nAllowedIPs = 10.7.0.{extra}/32\n"
            path.write_text("\n".join([*sections, more]))
            subprocess.run(["wg", "syncconf", BASELINE, str(path)], check=True)

        write(1)
        return quantile([timed(lambda number=number: write(number)) for number in range(2, 2 + rounds)], 0.5)
    finally:
        subprocess.run(["ip", "link", "del", BASELINE], check=True)


def measured(count: int, requests: int, advance: Callable[[str], None]) -> dict[str, float]:
    """One line of the table."""
    with site("always") as bench:
        gateway = bench.gateway(
            dataplane="kernel",
            interface=INTERFACE,
            pools=(str(POOL),),
            max_peers=1_000_000,
            listen_port=51899,
        )
        peers = many_peers(count)
        store(bench.server, NAME, peers)
        advance("the writer's start")
        recovery = timed(lambda: start(gateway)) / 1000
        advance("creates and deletes")
        api = bench.client
        for _ in range(20):
            api.delete_peer(api.create_peer(some_key()).public_key)
        keys = [some_key() for _ in range(requests)]
        creates = [timed(lambda key=key: api.create_peer(key)) for key in keys]
        deletes = [timed(lambda key=key: api.delete_peer(key)) for key in keys]
        advance("wg syncconf")
        return {
            "peers": count,
            "recovery_s": round(recovery, 2),
            "create_p50_ms": round(quantile(creates, 0.5), 2),
            "create_p99_ms": round(quantile(creates, 0.99), 2),
            "delete_p50_ms": round(quantile(deletes, 0.5), 2),
            "delete_p99_ms": round(quantile(deletes, 0.99), 2),
            "syncconf_ms": round(syncconf(peers, bench.directory), 1),
        }


def start(gateway: GatewayProcess) -> None:
    """Return once its lane is served; a hundred thousand peers take a slow kernel half a minute."""
    gateway.start(wait=False)
    gateway.await_serving(within=300)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", default="0,10000,50000", help="peers on the gateway, such as 0,10000,50000,100000")
    parser.add_argument("--requests", type=int, default=500, help="creates, and deletes, for each")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw them")


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    counts = [int(count) for count in chosen.peers.split(",")]
    # What takes time grows with the peers, beyond what any start takes.
    shares = [count + 10_000 for count in counts]
    points: list[dict[str, float]] = []
    for at, count in enumerate(counts):
        share = sum(shares[:at]) / sum(shares)
        points.append(
            measured(count, chosen.requests, lambda step, n=count, s=share: advance(f"{n:,} peers: {step}", s))
        )
    system = f"{platform.system()} {platform.release()}, {os.cpu_count()} CPU"
    return {"about": f"{chosen.requests} requests each, one at a time · fsync always · {system}", "points": points}


def show(figures: Figures) -> Table:
    table = Table(title="one request at its caller, and one change through wg syncconf (ms)", caption=figures["about"])
    for column in ("peers", "start, s", "create p50", "p99", "delete p50", "p99", "syncconf", "times create p50"):
        table.add_column(column, justify="right")
    for line in figures["points"]:
        table.add_row(
            f"{line['peers']:,.0f}",
            f"{line['recovery_s']:.1f}",
            *(f"{line[name]:.1f}" for name in ("create_p50_ms", "create_p99_ms", "delete_p50_ms", "delete_p99_ms")),
            f"{line['syncconf_ms']:.0f}",
            f"{line['syncconf_ms'] / line['create_p50_ms']:.0f}",
        )
    return table


def keep(chosen: argparse.Namespace, figures: Figures) -> None:
    if chosen.svg is not None:
        chosen.svg.write_text(plot(figures), encoding="utf-8")


BENCH = Bench(
    script=__file__, about=__doc__ or "", measure=measure, show=show, options=options, keep=keep, needs_kernel=True
)

if __name__ == "__main__":
    sys.exit(run(BENCH))
