"""Frees addresses that Redis assigns to peers that do not have them: another program left them, or an old fault.

No peer could get such an address, and the smallest free one is tried for each new peer. Addresses of peers whose
records cannot be used stay. Few strays are held at a time: a gateway may have millions of addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace

from redis.exceptions import ResponseError

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import raw_key
from peerlane.workers.host.pulse import LONG, PULSE
from peerlane.workers.peers.plan import Plan
from peerlane.workers.peers.table import PeerTable
from peerlane.workers.start.recovery import Recovered
from peerlane.workers.start.startup_commits import Commit, free_addresses
from peerlane.workers.store.retry import RetryUntilShutdown
from peerlane.workers.store.store import Store

log = logging.getLogger(__name__)

#: Strays freed before the hash is read again.
AT_ONCE = 4_096
#: Strays that the log names.
NAMED = 5
#: How a recovery counts them among what it has mended.
KIND = "stray_address"


def free_strays(
    store: Store, done: Recovered, commit: Commit, until_answered: RetryUntilShutdown, *, suspected: bool
) -> Recovered:
    """Free stray addresses; adds to ``done`` how many.

    Unless one is ``suspected``, the hash is read only if it has more addresses than the peers: at a million peers that
    takes seconds. What Redis refuses to free is held in the table, so that other peers get other addresses.
    """
    table = done.table
    if not suspected and until_answered(store.address_count) <= len(table.index):
        return done
    adopted = {plan.public_key for plan in done.adopted}
    freed: list[str] = []
    count = 0
    while True:
        strays = until_answered(lambda: _strays(store, table, adopted))
        plans = _plans(table, strays)
        try:
            refused = free_addresses(store.gateway, plans, commit)
        except ResponseError:  # its memory is full, say
            refused = plans
        left = {prefix for plan in refused for prefix in plan.freed}
        for prefix in left:
            _hold(table, prefix)
        gone = [f"{prefix} of {owner}" for prefix, owner in strays.items() if prefix not in left]
        count += len(gone)
        freed += gone[: NAMED - len(freed)]
        if not gone or len(strays) < AT_ONCE:
            break
    if not count:
        return done
    log.warning(
        "gateway %s: %d addresses were assigned to peers that do not have them, and are free again: %s%s",
        *(store.gateway, count, ", ".join(freed), ", …" if count > len(freed) else ""),
    )
    return replace(done, mended={**done.mended, KIND: count})


def _strays(store: Store, table: PeerTable, adopted: Collection[str]) -> dict[Prefix, str]:
    """The first strays, with the key of the peer that each is assigned to. Raises redis.RedisError."""
    strays: dict[Prefix, str] = {}
    for page in store.addresses():
        PULSE.turn(LONG)
        for name, value in page:
            owner = value.decode(errors="replace")
            raw = raw_key(owner)
            record = None if raw is None else table.peers.record(raw)
            # Nearly all are: the record is not parsed for it.
            if record is not None and b'"%b"' % name in record:
                continue
            prefix = _prefix(name)
            if prefix is None or owner in table.broken or owner in adopted:
                continue
            if raw is None:
                _hold(table, prefix)  # no commit can name such a peer
            elif record is None or prefix not in table.peers[owner].allowed_ips:
                strays[prefix] = owner
        if len(strays) >= AT_ONCE:
            break
    return strays


def _prefix(name: bytes) -> Prefix | None:
    """The prefix as commits write it; None for any other text, which is in nobody's way."""
    text = name.decode(errors="replace")
    try:
        prefix = Prefix.parse(text)
    except ValueError:
        return None
    return prefix if str(prefix) == text else None


def _plans(table: PeerTable, strays: dict[Prefix, str]) -> list[Plan]:
    of: dict[str, list[Prefix]] = {}
    for prefix, owner in strays.items():
        of.setdefault(owner, []).append(prefix)
    plans: list[Plan] = []
    for owner, prefixes in of.items():
        peer = table.peers.get(owner)
        plans.append(Plan("absent" if peer is None else "existing", owner, peer, peer, freed=tuple(prefixes)))
    return plans


def _hold(table: PeerTable, prefix: Prefix) -> None:
    """Give the address to no peer. One outside the pools is given only to whoever names it."""
    if any(pool.prefix.contains(prefix) for pool in table.pools):
        table.index.take(prefix)
