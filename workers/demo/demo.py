"""``peerlane demo``: runs all of Peerlane on this machine, shows what happens, and leaves nothing behind.

Every peer goes the real way: client, queue, writer, data plane, commit. The printed figures are measured in this run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.rule import Rule
from rich.text import Text

from peerlane.config import names
from peerlane.tasks.admin import maintenance
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.cli.output import Output, as_document
from peerlane.tasks.cli.peer.qr import qr_code
from peerlane.tasks.cli.tables import facts, gateway_table
from peerlane.tasks.client.gateway import gateways
from peerlane.tasks.errors import TimedOut
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.keys import make_key_pair
from peerlane.tasks.wgfile.client_config import client_config
from peerlane.workers.demo.benchmark import PATIENCE, Ask, DemoFailed, Figures, figures_table, measured
from peerlane.workers.demo.local_fleet import NAMES, Fleet, choose_dataplane
from peerlane.workers.demo.process import LOOK
from peerlane.workers.demo.signals import Ending

#: Requests made one at a time first, at most, to measure a request while no others wait.
ALONE = 100
#: Peers at most that are made to expire.
SHORT_LIVED = 250


class Demo:
    """The steps of the demo, in their order. ``result`` collects the result for programs."""

    def __init__(self, fleet: Fleet, output: Output, ending: Ending, *, peers: int) -> None:
        self.fleet = fleet
        self.output = output
        self.ending = ending
        self.peers = peers
        self.result: dict[str, Any] = {}
        self._there: list[Ask] = []

    def start(self, why: str) -> None:
        """Start everything, and show what runs."""
        output, fleet = self.output, self.fleet
        began = time.monotonic()
        if output.err.is_terminal:
            with output.err.status("starting the server") as status:
                fleet.start(lambda part: status.update(f"starting {part}"))
        else:
            fleet.start()
        seconds = time.monotonic() - began
        server = fleet.server.program
        kind = "Valkey" if "valkey" in server.path.name else "Redis"
        running = {
            "server": f"{kind} {server.version}, append-only file, synced each second",
            "gateways": f"{', '.join(fleet.names)}: one lane, one writer and one observer each",
            "data plane": f"{fleet.dataplane}, {why}",
            "beside them": "beat" + (f", Flower at {fleet.flower_url}" if fleet.flower_url else ""),
        }
        self._say(Text("Peerlane on this machine", "bold"))
        self._say(facts(running))
        self._say(Text(f"  ready in {seconds:.1f} s", "dim"))
        self.result |= {"dataplane": fleet.dataplane, "dataplane_reason": why, "gateways": list(fleet.names)}
        self.result |= {"server": server.version, "redis_url": fleet.url, "flower_url": fleet.flower_url}

    def create(self) -> None:
        """Create the peers, some of them one at a time."""
        self._part(f"{self.peers:,} peers, each installed and stored before its caller hears of it")
        asks = [Ask(self._name(number), make_key_pair().public_key) for number in range(self.peers)]
        alone = min(ALONE, len(asks) // 10)
        first, many = self._measured("creating", names.CREATE_PEER, asks, alone)
        self._there += asks
        self._figures("created", first, many)
        self._say(gateway_table(self._counted(), self.output.out.width))

    def _counted(self) -> list[GatewayInfo]:
        """Wait until the gateways' heartbeats count all peers, about a second; returns the gateways."""
        deadline = time.monotonic() + 5
        while True:
            infos = gateways(self.fleet.app)
            if sum(info.peers for info in infos) >= len(self._there) or time.monotonic() > deadline:
                return infos
            time.sleep(LOOK)

    def sweep(self) -> None:
        """Let peers expire, and show the sweep that removes them and no others."""
        # A fifth of all at most: a sweep of more than half would have to be confirmed.
        count = min(SHORT_LIVED, max(1, self.peers // 4))
        self._part(f"{count:,} more that expire after a second, and the sweep of each gateway's observer")
        asks = [Ask(self._name(number), make_key_pair().public_key, {"ttl": 1}) for number in range(count)]
        self._measured("creating", names.CREATE_PEER, asks)
        self._await_expiry(asks[-len(self.fleet.names) :])
        began = time.monotonic()
        reports = {name: maintenance.sweep(self.fleet.app, name, timeout=PATIENCE) for name in self.fleet.names}
        seconds = time.monotonic() - began
        left, expected = self._left(), {(ask.gateway, ask.public_key) for ask in self._there}
        if left != expected:
            raise DemoFailed(
                f"sweeps removed {len(expected - left)} too many and left {len(left - expected)}: {reports}"
            )
        self._say(Text(f"  removed: {count:,} expired peers, in {seconds:.2f} s", "bold green"))
        self._say(Text(f"  left: the other {len(left):,} peers", "dim"))
        self.result["swept"] = {"count": count, "left": len(left), "seconds": round(seconds, 3)}

    def _await_expiry(self, last: Sequence[Ask]) -> None:
        """Wait until the gateways' last peers have expired on Redis' clock, which sweeps use."""
        peers = [self.fleet.gateway(ask.gateway).peer(ask.public_key) for ask in last]
        until = max((peer.expires_at or 0 for peer in peers if peer is not None), default=0)
        redis = lanes_of(self.fleet.app).redis
        while redis.time()[0] < until:
            self.ending.check()
            time.sleep(LOOK)

    def _left(self) -> set[tuple[str, str]]:
        """Every peer that Redis holds: gateway and key."""
        return {(name, peer.public_key) for name in self.fleet.names for peer in self.fleet.gateway(name).peers()}

    def show_client(self) -> None:
        """One client's configuration, as text and as a QR code."""
        name = self.fleet.names[0]
        self._part("a client's configuration: peerlane peer create iad --ttl 1h --conf - --qr".replace("iad", name))
        pair, gateway = make_key_pair(), self.fleet.gateway(name)
        result = gateway.create_peer(pair.public_key, ttl=3600, labels={"name": "laptop"}, timeout=PATIENCE)
        self._there.append(Ask(name, pair.public_key))
        text = client_config(result, gateway.info(), private_key=pair.private_key).render()
        self._say(Text(text.rstrip("\n"), "cyan"))
        drawn = qr_code(text)
        if self.output.json or drawn is None:
            return
        code, width = drawn
        if self.output.out.width < width:
            self._say(Text(f"(its QR code needs {width} columns)", "dim"))
        else:
            self._say(Text())
            self.output.out.print(code, soft_wrap=True)
        self._say(Text("  The private key was made here; nobody else has it.", "dim"))

    def conflict(self) -> None:
        """Show a conflict at a shell."""
        ask = self._there[0]
        self._part("a conflict, at a shell: the key is there with another wish")
        words = ["peer", "create", ask.gateway, "--keepalive", "25", "--public-key", ask.public_key]
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "peerlane.workers.cli", "--redis", self.fleet.url, *words],
            cwd=self.fleet.directory,
            env=self.fleet.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if ran.returncode != 1 or "error: " not in ran.stderr:
            raise DemoFailed(f"a conflict was answered with status {ran.returncode}: {ran.stderr or ran.stdout}")
        self._say(Text(f"$ peerlane {' '.join(words[:5])} \\\n      {' '.join(words[5:])}", "bold"))
        self._say(Text(ran.stderr.strip(), "red"))
        self._say(Text("$ echo $?\n1", "bold"))
        self.result["conflict"] = ran.stderr.strip().removeprefix("error: ")

    def time_out(self) -> None:
        """Show a timeout in an API, and that the peer does not appear later."""
        name = self.fleet.names[-1]
        self._part(f"a timeout, in an API: the writer of {name} is frozen (SIGSTOP), then goes on")
        gateway, child, key = self.fleet.gateway(name), self.fleet.gateways[name], make_key_pair().public_key
        child.pause()
        try:
            gateway.create_peer(key, timeout=1)
        except TimedOut as error:
            refusal = error
        else:
            raise DemoFailed(f"the gateway {name} was frozen and created a peer")
        finally:
            child.resume()
        # The lane is first in, first out: with this answer the cancelled request has been dealt with.
        after = gateway.delete_peer(key, timeout=PATIENCE).outcome
        if after != "absent":
            raise DemoFailed(f"a request that had timed out took effect on {name}")
        self._say(Text(f'>>> Gateway("{name}").create_peer(key, timeout=1)', "bold"))
        self._say(Text(f"TimedOut: {refusal}", "red"))
        self._say(Text(f'>>> Gateway("{name}").delete_peer(key).outcome    # {name} goes on', "bold"))
        self._say(Text(f"'{after}'"))
        self.result["timeout"] = as_document(refusal)

    def delete(self) -> None:
        """Delete every peer, and check that none is left."""
        self._part("and all of them deleted again")
        asks, self._there = self._there, []
        _, many = self._measured("deleting", names.DELETE_PEER, asks)
        if left := len(self._left()):
            raise DemoFailed(f"{left} peers are left after all were deleted")
        self._figures("deleted", None, many)
        self._say(Text("  left: 0 peers", "dim"))

    def keep(self) -> None:
        """Leave it running until Ctrl-C."""
        fleet = self.fleet
        self._part("running until Ctrl-C")
        addresses = {"Redis": fleet.url, "Flower": fleet.flower_url, "logs": str(fleet.directory)}
        self._say(facts(addresses))
        self._say(Text(f"\nexport PEERLANE_REDIS_URL={fleet.url}", "bold"))
        for words in ("gateway list", f"peer create {fleet.names[0]} --ttl 1h --qr", f"peer list {fleet.names[0]}"):
            self._say(Text(f"peerlane {words}", "bold"))
        # A reader at a pipe needs the output before the wait.
        sys.stdout.flush()
        try:
            while all(child.status() is None for child in fleet.gateways.values()):
                time.sleep(0.5)
                self.ending.check()
        except KeyboardInterrupt:
            return
        raise DemoFailed("a gateway has ended:\n" + "\n".join(child.tail() for child in fleet.gateways.values()))

    def _name(self, number: int) -> str:
        return self.fleet.names[number % len(self.fleet.names)]

    def _measured(self, title: str, task: str, asks: Sequence[Ask], alone: int = 0) -> tuple[Figures | None, Figures]:
        return measured(
            self.fleet.app, task, asks, title=title, output=self.output, check=self.ending.check, alone=alone
        )

    def _figures(self, verb: str, first: Figures | None, many: Figures) -> None:
        self._say(figures_table(verb, first, many))
        self.result[verb] = many.as_dict() | ({"alone": first.as_dict()} if first is not None else {})

    def _part(self, title: str) -> None:
        self._say(Text())
        on_terminal = self.output.out.is_terminal
        self._say(Rule(Text(title, "bold"), align="left", style="dim") if on_terminal else Text(f"== {title}"))

    def _say(self, renderable: Any) -> None:
        if not self.output.json:
            self.output.show(renderable)


def run_demo(output: Output, *, peers: int, count: int, keep: bool, flower: bool) -> None:
    """Run the demo, from the first process to the last file.

    Raises:
        PeerlaneError: a part did not come up, or a step failed; all has been ended.
    """
    dataplane, why = choose_dataplane()
    began = time.monotonic()
    with Ending() as ending, Fleet(NAMES[:count], dataplane, flower=flower, ending=ending) as fleet:
        demo = Demo(fleet, output, ending, peers=peers)
        demo.start(why)
        demo.create()
        demo.sweep()
        demo.show_client()
        demo.conflict()
        demo.time_out()
        demo.delete()
        if keep:
            demo.keep()
    seconds = time.monotonic() - began
    if output.json:
        output.document({**demo.result, "seconds": round(seconds, 1)})
    else:
        output.show(Text(f"\nEverything that was started has been stopped. {seconds:.1f} s in all.", "green"))
