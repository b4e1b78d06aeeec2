"""``peerlane peer create | delete | show | list``."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest
from itertools import chain
from pathlib import Path
from typing import Any, TextIO, cast

import click

from peerlane.config import names
from peerlane.tasks.cli.counting import counting
from peerlane.tasks.cli.interrupts import ended_as_by_ctrl_c
from peerlane.tasks.cli.parameters import Duration, GatewayName, Seconds, labels_from
from peerlane.tasks.cli.peer.batch import Batch, Target, create_many, delete_many
from peerlane.tasks.cli.peer.batch_file import Line, read_keys, read_lines, text_of
from peerlane.tasks.cli.peer.create import STDOUT, Order, create_one
from peerlane.tasks.cli.peer.request import ask, fail, new_request_id
from peerlane.tasks.cli.program import Group
from peerlane.tasks.cli.session import Session, pass_session
from peerlane.tasks.cli.tables import activity_facts, facts, peer_facts, peer_row, peer_table
from peerlane.tasks.client.gateway import Gateway
from peerlane.tasks.errors import Invalid, PeerlaneError, StorageError
from peerlane.tasks.values.activity import PeerActivity
from peerlane.tasks.wire.bulk import SLICE
from peerlane.tasks.wire.stored_peer import Peer

#: Peers shown in one table; a pipe and --json give all.
TABLE = 1_000

timeout_option = click.option(
    "--timeout",
    type=Seconds(0, 600, min_open=True),
    metavar="SECONDS",
    help="How long to wait; then the request is cancelled.  [default: 5]",
)
window_option = click.option(
    "--window",
    type=click.IntRange(1, 1000),
    default=4 * SLICE,
    show_default=True,
    help="Of many requests, how many are outstanding at once on a gateway.",
)
where_option = click.option(
    "--where", multiple=True, callback=labels_from, metavar="NAME=VALUE", help="Likewise, by its labels; repeatable."
)


class NotThere(PeerlaneError):
    """The peer does not exist."""

    code = "not_there"


@click.group(cls=Group)
@click.pass_context
def peer(context: click.Context) -> None:
    """Peers: create, delete, show, list."""
    context.with_resource(ended_as_by_ctrl_c())


@peer.command()
@click.argument("gateway", type=GatewayName(), required=False)
@click.option("--region", help="Instead of GATEWAY: the one of this region with most room.")
@where_option
@click.option("--public-key", metavar="KEY", help="The peer's public key; without it a key pair is made here.")
@click.option("--allowed-ip", "allowed_ips", multiple=True, metavar="PREFIX", help="A prefix to give it; repeatable.")
@click.option("--ttl", type=Duration(), help="Let it expire: 90, 90s, 15m, 1h, 2d, 1w.")
@click.option("--label", "labels", multiple=True, callback=labels_from, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--keepalive", type=click.IntRange(0, 65535), metavar="SECONDS", help="Send keepalives, both ways.")
@click.option("--preshared-key", is_flag=True, help="Make a preshared key too.")
@click.option(
    "--preshared-key-file",
    type=click.File(encoding="utf-8-sig"),
    metavar="FILE",
    help="Use the preshared key in this file; - is stdin.",
)
@click.option("--pinned", is_flag=True, help="Never swept for being idle.")
@timeout_option
@click.option("--conf", type=click.Path(path_type=Path), help="Write the client's configuration here; - prints it.")
@click.option("--force", is_flag=True, help="Replace the file of --conf if it is there.")
@click.option("--qr", is_flag=True, help="Draw the client's configuration as a QR code.")
@click.option("--request-id", metavar="ID", help="The same id twice is the same request.")
@click.option("--from", "source", type=click.File(encoding="utf-8-sig"), help="Many: a CSV or JSON; - is stdin.")
@window_option
@pass_session
def create(session: Session, gateway: str | None, **options: Any) -> None:
    """Create a peer, or many with --from.

    Without --public-key a key pair is made here, and its private key is shown or written once. Without --allowed-ip
    the gateway gives one address of each family.

    The file of --from is a CSV whose first line names its fields, JSON lines or a JSON array: public_key, allowed_ips,
    preshared_key, keepalive, ttl, labels, pinned. Options hold for lines that say nothing else. With --region or
    --where each line goes to the gateway that has most room then; the answers name it.
    """
    _refuse_two_ways(gateway, options)
    if gateway is None and options["request_id"]:
        raise click.UsageError("a --request-id is of one GATEWAY; with --region and --where the public key is enough")
    wish = {
        "ttl": options["ttl"],
        "labels": options["labels"] or None,
        "keepalive": options["keepalive"],
        "pinned": options["pinned"] or None,
    }
    wish = {name: value for name, value in wish.items() if value is not None}
    if options["source"] is not None:
        _refuse_beside_a_list(options)
        lines = read_lines(text_of(options["source"]), wish)
        target = Target(gateway, options["region"], options["where"])
        create_many(session, target, lines, Batch(options["timeout"], options["window"]))
        return
    if options["qr"] and options["public_key"]:
        raise click.UsageError("--qr draws a private key, and with --public-key only you have it")
    if options["qr"] and session.output.json:
        raise click.UsageError(
            "--qr draws for people, --json is for programs; --conf - puts the text into the document"
        )
    create_one(
        session,
        Order(
            gateway=gateway,
            region=options["region"],
            where=options["where"],
            wish=wish | ({"allowed_ips": options["allowed_ips"]} if options["allowed_ips"] else {}),
            public_key=options["public_key"],
            with_preshared_key=options["preshared_key"],
            preshared_key=_preshared_key(options),
            timeout=options["timeout"],
            request_token=options["request_id"],
            conf=options["conf"],
            replace_conf=options["force"] and options["conf"] != STDOUT,
            qr=options["qr"],
        ),
    )


def _gateway_and_keys(words: Sequence[str], options: Mapping[str, Any]) -> tuple[str | None, Sequence[str]]:
    """The words of a delete: where gateways are chosen, all are keys; no key has the form of a gateway's name."""
    if options["region"] or options["where"]:
        _refuse_two_ways(next((word for word in words[:1] if names.GATEWAY_NAME.fullmatch(word)), None), options)
        return None, words
    _refuse_two_ways(words[0] if words else None, options)
    return GatewayName().convert(words[0], None, None), words[1:]


def _refuse_two_ways(gateway: str | None, options: Mapping[str, Any]) -> None:
    by_choice = bool(options["region"] or options["where"])
    if by_choice and gateway is not None:
        raise click.UsageError("name a GATEWAY, or choose by --region and --where, not both")
    if not by_choice and gateway is None:
        raise click.UsageError("name a GATEWAY, or choose one by --region or --where")


def _preshared_key(options: dict[str, Any]) -> str | None:
    """The preshared key in the file of --preshared-key-file."""
    source = cast("TextIO | None", options["preshared_key_file"])
    if source is None:
        return None
    if options["preshared_key"]:
        raise click.UsageError("--preshared-key makes a key, --preshared-key-file reads one: give one of them")
    try:
        return source.read(1024).strip()
    except (UnicodeDecodeError, OSError):
        raise Invalid("the file of --preshared-key-file cannot be read as text") from None


def _refuse_beside_a_list(options: dict[str, Any]) -> None:
    for name in ("public_key", "allowed_ips", "preshared_key", "preshared_key_file", "conf", "qr", "request_id"):
        if options[name]:
            option = "--allowed-ip" if name == "allowed_ips" else "--" + name.replace("_", "-")
            raise click.UsageError(f"{option} is for one peer; with --from each line says its own")


@peer.command()
@click.argument("words", nargs=-1, metavar="[GATEWAY] KEY...")
@click.option("--region", help="Instead of GATEWAY: all of this region; a peer is deleted wherever it is.")
@where_option
@click.option(
    "--from", "source", type=click.File(encoding="utf-8-sig"), help="Many: a key a line, CSV or JSON; - is stdin."
)
@timeout_option
@window_option
@pass_session
def delete(session: Session, words: Sequence[str], *, source: TextIO | None, **options: Any) -> None:
    """Delete peers by their public keys. Deleting what is not there is no error.

    With --region or --where the answers are those of a list, and name the gateway.
    """
    gateway, keys = _gateway_and_keys(words, options)
    target, batch = Target(gateway, options["region"], options["where"]), Batch(options["timeout"], options["window"])
    if source is not None and keys:
        raise click.UsageError("name keys, or a file of them with --from, not both")
    if source is not None:
        delete_many(session, target, read_keys(text_of(source)), batch, numbered=True)
        return
    if not keys:
        raise click.UsageError("Missing argument 'KEY...': name keys, or a file of them with --from")
    if gateway is None or len(keys) > 1:
        lines = [Line(number, {"public_key": key}) for number, key in enumerate(keys, 1)]
        delete_many(session, target, lines, batch, numbered=False)
        return
    (key,) = keys
    request_id = new_request_id(gateway)
    try:
        client = session.gateway(gateway)
        result = ask(session, request_id, lambda: client.delete_peer(key, timeout=batch.timeout, request_id=request_id))
    except PeerlaneError as error:
        again = shlex.join(["peerlane", "peer", "delete", gateway, key])
        raise fail(session, error, {}, again, gateway=gateway, public_key=key, request_id=request_id) from None
    if session.output.json:
        session.output.document({**result.model_dump(mode="json", exclude_none=True), "request_id": request_id})
    else:
        session.output.out.print(f"{result.outcome}  {result.public_key}", style="green")


@peer.command()
@click.argument("gateway", type=GatewayName())
@click.argument("key")
@pass_session
def show(session: Session, gateway: str, key: str) -> None:
    """One peer as it is stored, when it was last seen, and what it has sent and received."""
    client = session.gateway(gateway)
    client.info()  # an unknown gateway is another answer than an unknown peer
    stored = client.peer(key)
    if stored is None:
        raise NotThere(f"the gateway {gateway} has no peer {key}")
    try:
        activity, visible = client.activity(key), True
    except StorageError as refusal:
        activity, visible = None, False
        session.output.warn(f"when it was last seen is not shown: {refusal.message}")
    if session.output.json:
        about = {"activity": None if activity is None else activity.as_dict()}
        session.output.document({"gateway": gateway, **stored.public(), **about})
    else:
        session.output.show(facts(peer_facts(stored) | activity_facts(activity, created=visible)))


@peer.command("list")
@click.argument("gateway", type=GatewayName())
@pass_session
def list_peers(session: Session, gateway: str) -> None:
    """Every peer: a table on a terminal, else one line each, tab-separated.

    The fields are: public key, preshared key, allowed IPs, keepalive, expiry (seconds since 1970), labels, last seen
    (seconds since 1970; 0 for never), bytes received from it, bytes sent to it, its endpoint.
    """
    client = session.gateway(gateway)
    total = client.info().peers
    output = session.output
    visible, everyone = _with_activity(session, client)
    first: list[tuple[Peer, PeerActivity | None]] | None = None
    with counting(output, f"peers of {gateway}", total) as counted:
        peers = counted(everyone)
        if output.json:
            documents = ({**stored.public(), "activity": seen.as_dict() if seen else None} for stored, seen in peers)
            output.listing({"gateway": gateway}, "peers", documents)
        elif not output.out.is_terminal:
            for stored, activity in peers:
                output.lines(peer_row(stored, activity) + "\n")
        else:
            first = nsmallest(TABLE, peers, key=lambda pair: (pair[0].allowed_ips, pair[0].public_key))
    if first is not None:
        left_out: list[str] = []
        if first:
            table, left_out = peer_table(first, output.out.width, with_activity=visible)
            output.show(table)
        beyond = counted.count - TABLE
        rest = f", {beyond:,} not shown: a pipe gets them all" if beyond > 0 else ""
        output.note(f"{counted.count:,} {'peer' if counted.count == 1 else 'peers'}{rest}")
        if left_out:
            output.note(f"no room for {', '.join(left_out)}: a wider terminal, a pipe or --json has them", "dim")


def _with_activity(session: Session, client: Gateway) -> tuple[bool, Iterable[tuple[Peer, PeerActivity | None]]]:
    """Every peer with its activity, if this Redis user may see that (whether it may comes first)."""
    pairs = client.peers_with_activity()
    try:
        first = next(pairs, None)
    except StorageError as refusal:
        session.output.warn(f"when peers were last seen is not shown: {refusal.message}")
        return False, ((peer, None) for peer in client.peers())
    return True, () if first is None else chain([first], pairs)
