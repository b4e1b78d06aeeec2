"""What lists give: beside no-op Celery tasks, beside the same wishes one by one, and to who waits beside them.

    make bench          or: python tests/bench/bench_lists.py [--peers N] [--samples N] [--always] [--json FILE]
                            python tests/bench/bench_lists.py --plane kernel [--peers N] [--rounds N]

All in one run, in turns: the ratios are the point. One by one is a window of 256 single creates on the bulk queue. The
caller beside the lists is interactive; the lists come from a process of their own, without a pause.

With ``--plane kernel`` the lists are beside a WireGuard device that is given the same peers as fast as it takes them.
The writer's own share is told apart: where there is one processor, Redis and the caller of the lists need it, too.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench_report import Advance, Bench, Figures, run
from bench_scale_parts import POOLS, alone, own_adds
from bench_site import NAME, site, start_program
from bench_timing import drain, one_create, processor_seconds, quantiles
from gateways import GatewayProcess
from keys import some_key
from rich.table import Table
from waiting import PATIENCE, eventually

from peerlane import Gateway, PeerResult
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.lane.pipeline import send_pipelined
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.lane.tasks import task_of

WINDOW = 256
#: Seconds between two creates of the interactive caller.
EVERY = 0.02
#: Runs this file as the one that sends lists without a pause.
SENDER = "--as-sender"


def lists(app: PeerlaneApp, count: int) -> float:
    """Peers created per second, by lists."""
    return created_per_s(app, wishes_for(count))


def wishes_for(count: int) -> list[dict[str, Any]]:
    """Wishes that name a key and nothing else."""
    return [{"public_key": some_key()} for _ in range(count)]


def created_per_s(app: PeerlaneApp, wishes: Sequence[Mapping[str, Any]]) -> float:
    """As ``lists``, of these wishes."""
    began = time.perf_counter()
    answers = Gateway(NAME, app=app).create_peers(wishes, timeout=PATIENCE)
    took = time.perf_counter() - began
    if not all(isinstance(answer, PeerResult) for answer in answers):
        raise RuntimeError("a list was refused")
    return len(wishes) / took


def one_by_one(app: PeerlaneApp, count: int) -> float:
    """The same, each wish a request of its own."""
    create = task_of(app, names.CREATE_PEER)

    def send(key: str) -> LaneResult:
        return create.apply_async(kwargs={"gateway": NAME, "public_key": key}, expires=PATIENCE, bulk=True)

    keys = [some_key() for _ in range(count)]
    began = time.perf_counter()
    answered = sum(
        isinstance(answer.outcome, PeerResult) for answer in send_pipelined(send, keys, timeout=PATIENCE, size=WINDOW)
    )
    took = time.perf_counter() - began
    if answered != count:
        raise RuntimeError("a create was refused")
    return count / took


def send_for_ever(url: str) -> None:
    """Lists without a pause, until the process is ended."""
    app = PeerlaneApp(read(redis_url=url))
    while os.getppid() != 1:  # nor longer than who has started it
        lists(app, 64 * 16)


def creates(client: Gateway, count: int) -> list[float]:
    """Creates now and then."""
    times: list[float] = []
    for _ in range(count):
        times.append(one_create(client))
        time.sleep(EVERY)
    return times


def beside_lists(gateway: GatewayProcess, client: Gateway, url: str, count: int) -> list[float]:
    """Creates while lists come in without a pause."""
    sender = start_program(__file__, SENDER, url)
    try:
        eventually(lambda: gateway.look().waiting_bulk > 0, "lists on their way")
        return creates(client, count)
    finally:
        sender.kill()
        sender.wait()


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=8000, help="peers of one round of lists")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=300, help="creates of the caller, idle and beside lists")
    parser.add_argument("--always", action="store_true", help="appendfsync always, instead of everysec")
    parser.add_argument("--plane", default="memory", choices=("memory", "kernel"))


def beside_a_device(chosen: argparse.Namespace, advance: Advance) -> Figures:
    """Lists on a WireGuard device, and what such a device takes by itself."""
    fsync = "always" if chosen.always else "everysec"
    settings: dict[str, Any] = {
        "dataplane": "kernel",
        "interface": "wglists",
        "pools": ",".join(POOLS),
        "max_peers": 1_000_000,
    }
    with site(fsync) as bench:
        gateway, app = bench.gateway(**settings), bench.app
        gateway.start(wait=False)
        gateway.await_serving(within=120)
        lists(app, 640)  # connections, scripts
        own, by_lists = list[float](), list[float]()
        processes = {"writer": gateway.pid, "redis": bench.server.pid, "client": os.getpid()}
        used: dict[str, list[float]] = {name: [] for name in processes}
        for number in range(chosen.rounds):
            advance(f"round {number + 1}: a device by itself", number / chosen.rounds)
            first = 1 + number * chosen.peers
            own.append(chosen.peers / alone(own_adds, str(bench.directory), first, chosen.peers)["own_adds_s"])
            advance(f"round {number + 1}: lists", (number + 0.5) / chosen.rounds)
            wishes = wishes_for(chosen.peers)
            before = {name: processor_seconds(pid) for name, pid in processes.items()}
            by_lists.append(created_per_s(app, wishes))
            for name, pid in processes.items():
                used[name].append((processor_seconds(pid) - before[name]) / chosen.peers)
        rates = {
            "own_adds_per_s": round(median(own), 1),
            "lists_per_s": round(median(by_lists), 1),
            "writer_per_s": round(1 / median(used["writer"]), 1),
        }
        rates |= {f"{name}_us": round(median(shares) * 1e6, 1) for name, shares in used.items()}
        return rates | {
            "lists_to_own_adds": round(rates["lists_per_s"] / rates["own_adds_per_s"], 2),
            "writer_to_own_adds": round(rates["writer_per_s"] / rates["own_adds_per_s"], 2),
            "about": f"appendfsync {fsync}, WireGuard device, medians of {chosen.rounds} rounds",
        }


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    if chosen.plane == "kernel":
        return beside_a_device(chosen, advance)
    fsync = "always" if chosen.always else "everysec"
    with site(fsync) as bench:
        gateway = bench.gateway(pools="10.0.0.0/9,fd00:8::/64", max_peers=1_000_000)
        stock, app, client = bench.stock(), bench.app, bench.client
        gateway.start()
        rates: dict[str, list[float]] = {"no_op": [], "lists": [], "one_by_one": []}
        for number in range(chosen.rounds):
            advance(f"round {number + 1}: no-op tasks", number / chosen.rounds * 0.7)
            rates["no_op"].append(drain(bench.server, stock.pid, "stock", stock.send, max(200, chosen.peers // 8)))
            advance(f"round {number + 1}: lists", (number + 0.4) / chosen.rounds * 0.7)
            rates["lists"].append(lists(app, chosen.peers))
            advance(f"round {number + 1}: one by one", (number + 0.6) / chosen.rounds * 0.7)
            rates["one_by_one"].append(one_by_one(app, max(200, chosen.peers // 8)))
        creates(client, 20)  # connections, scripts
        advance("creates on an idle gateway", 0.7)
        idle = creates(client, chosen.samples)
        advance("creates beside lists", 0.85)
        busy = beside_lists(gateway, client, bench.server.url, chosen.samples)
        figures: Figures = {f"{name}_per_s": round(median(values), 1) for name, values in rates.items()}
        figures |= quantiles(idle, "idle_") | quantiles(busy, "beside_")
        figures |= {
            "lists_to_no_op": round(figures["lists_per_s"] / figures["no_op_per_s"], 2),
            "lists_to_one_by_one": round(figures["lists_per_s"] / figures["one_by_one_per_s"], 2),
            "beside_to_idle_p99": round(figures["beside_p99_ms"] / figures["idle_p99_ms"], 2),
        }
        return figures | {"about": f"appendfsync {fsync}, memory data plane, medians of {chosen.rounds} rounds"}


def show(figures: Figures) -> Table:
    table = Table(title="lists of creates, in slices of 64", caption=figures["about"])
    for column in ("", "lists", "beside it", "ratio", "aim"):
        table.add_column(column, justify="left" if not column else "right")
    if "own_adds_per_s" in figures:
        own = f"{figures['own_adds_per_s']:,.0f}"
        for title, kind in (
            ("peers/s; a device by itself/s", "lists"),
            ("peers a second of its writer; the same", "writer"),
        ):
            ratio = f"{figures[f'{kind}_to_own_adds']:.2f}"
            table.add_row(title, f"{figures[f'{kind}_per_s']:,.0f}", own, ratio, "0.45" if kind == "lists" else "")
        for name in ("writer", "redis", "client"):
            table.add_row(f"µs of processor time a peer, {name}", f"{figures[f'{name}_us']:,.0f}")
        return table
    for title, other, ratio, aim in (
        ("peers/s; no-op tasks drained/s", "no_op_per_s", "lists_to_no_op", "10"),
        ("peers/s; one by one/s", "one_by_one_per_s", "lists_to_one_by_one", "12"),
    ):
        table.add_row(title, f"{figures['lists_per_s']:,.0f}", f"{figures[other]:,.0f}", f"{figures[ratio]:.1f}", aim)
    table.add_row(
        "interactive create p99, ms; idle",
        *(f"{figures['beside_p99_ms']:.2f}", f"{figures['idle_p99_ms']:.2f}"),
        *(f"{figures['beside_to_idle_p99']:.1f}", "at most 5"),
    )
    return table


BENCH = Bench(
    script=__file__,
    about=__doc__ or "",
    measure=measure,
    show=show,
    options=options,
    needs_kernel="kernel" in sys.argv,
)

if __name__ == "__main__":
    if sys.argv[1:2] == [SENDER]:
        send_for_ever(sys.argv[2])
    else:
        sys.exit(run(BENCH))
