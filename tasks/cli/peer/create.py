"""``peerlane peer create`` for one peer: keys, request, configuration. A private key is shown or written once."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from peerlane.tasks.cli.output import as_document
from peerlane.tasks.cli.peer.qr import qr_code
from peerlane.tasks.cli.peer.request import Interrupted, ask, fail, new_request_id
from peerlane.tasks.cli.program import Exit
from peerlane.tasks.cli.session import Session
from peerlane.tasks.cli.tables import facts, peer_facts
from peerlane.tasks.client.fleet import Fleet
from peerlane.tasks.client.placement import RETRY_ELSEWHERE
from peerlane.tasks.errors import Conflict, PeerlaneError
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.keys import make_key_pair, make_preshared_key
from peerlane.tasks.wgfile.client_config import ClientConfig, client_config, refuse_if_there, write_private
from peerlane.tasks.wire.model import PeerResult

#: ``--conf -``: standard output.
STDOUT = Path("-")

ONCE = "Shown this once, and never again: the {}."


@dataclass(frozen=True, slots=True)
class Order:
    """The wish from the command line."""

    #: None: the fleet's best of ``region`` with the labels ``where``.
    gateway: str | None
    region: str | None
    where: Mapping[str, str]
    #: The properties of the peer as ``Gateway.create_peer`` takes them.
    wish: Mapping[str, Any]
    public_key: str | None
    with_preshared_key: bool
    #: A preshared key that the caller has already.
    preshared_key: str | None = field(repr=False)
    timeout: float | None
    request_token: str | None
    conf: Path | None
    replace_conf: bool
    qr: bool


@dataclass(slots=True)
class Keys:
    """The caller's keys; the private key only if it was made here."""

    public: str
    private: str | None = field(default=None, repr=False)
    preshared: str | None = field(default=None, repr=False)

    def secrets(self) -> dict[str, str | None]:
        """The secrets that only this process has."""
        return {"private_key": self.private, "preshared_key": self.preshared}


def create_one(session: Session, order: Order) -> None:
    """Create a peer, and print the result with the keys or the configuration.

    Raises:
        PeerlaneError: before anything was sent.
        Exit: afterwards; what happened has been said.
    """
    if order.conf is not None and order.conf != STDOUT and not order.replace_conf:
        refuse_if_there(order.conf)
    wants_configuration = order.conf is not None or order.qr
    # Before anything is sent where that can be: an unknown gateway is no reason to make a key pair.
    info = session.gateway(order.gateway).info() if order.gateway and wants_configuration else None
    keys = _keys(order)
    about: dict[str, str] = {"public_key": keys.public}

    def create_on(name: str, timeout: float | None) -> PeerResult:
        request_id = new_request_id(name, order.request_token)
        about.update(gateway=name, request_id=request_id)
        create = partial(session.gateway(name).create_peer, keys.public, preshared_key=keys.preshared, **order.wish)
        return ask(session, request_id, lambda: create(timeout=timeout, request_id=request_id))

    began = time.monotonic()
    try:
        result = create_on(order.gateway, order.timeout) if order.gateway else _placed(session, order, about, create_on)
        request_id = about["request_id"]
        if result.public_key != keys.public:
            raise Conflict(f"the request id {request_id} was used before, for the peer {result.public_key}")
    except PeerlaneError as error:
        raise fail(session, error, _to_show(order, keys), _again(order, about), **about) from None
    made = Made(order, keys, result, request_id, time.monotonic() - began)
    if wants_configuration:
        made.configure(lambda: info or session.gateway(result.gateway).info())
    if session.output.json:
        _tell_program(session, made)
    else:
        _tell_person(session, made)
    if made.failure is not None:
        raise Exit(made.failure.exit_code)


def _to_show(order: Order, keys: Keys) -> dict[str, str | None]:
    """The secrets that were made here; one that came from a file is its caller's to keep."""
    made = keys.secrets()
    return made if order.preshared_key is None else {name: made[name] for name in ("private_key",)}


def _again(order: Order, about: Mapping[str, str]) -> str:
    """The command that asks for the same again, under the same request id. A preshared key is named by a file."""
    if "gateway" not in about:
        return ""
    words = ["peerlane", "peer", "create", about["gateway"], "--request-id", about["request_id"]]
    words += ["--public-key", about["public_key"]]
    for prefix in order.wish.get("allowed_ips") or ():
        words += ["--allowed-ip", str(prefix)]
    for option, name in (("--ttl", "ttl"), ("--keepalive", "keepalive")):
        words += [option, str(order.wish[name])] if order.wish.get(name) is not None else []
    for name, value in cast("Mapping[str, str]", order.wish.get("labels") or {}).items():
        words += ["--label", f"{name}={value}"]
    words += ["--pinned"] if order.wish.get("pinned") else []
    words += ["--preshared-key-file", "FILE"] if order.with_preshared_key or order.preshared_key else []
    return shlex.join(words)


@dataclass(slots=True)
class Made:
    """A created peer, and what its caller gets."""

    order: Order
    keys: Keys
    result: PeerResult
    request_id: str
    seconds: float
    #: The client's configuration, and where it went: ``file``, ``stdout`` or nowhere.
    config: ClientConfig | None = None
    went_to: str | None = None
    #: Why there is no configuration though one was asked for.
    failure: PeerlaneError | None = None

    def configure(self, ask: Callable[[], GatewayInfo]) -> None:
        """Render and write the configuration. The peer exists, its key is shown: it raises nothing, not even Ctrl-C."""
        try:
            self.config = client_config(
                self.result, ask(), private_key=self.keys.private, preshared_key=self.keys.preshared
            )
            if self.order.conf == STDOUT:
                self.went_to = "stdout"
            elif self.order.conf is not None:
                write_private(self.order.conf, self.config.render(), replace=self.order.replace_conf)
                self.went_to = "file"
        except PeerlaneError as error:
            self.failure = error
        except KeyboardInterrupt:
            self.failure = Interrupted("interrupted")

    @property
    def shown(self) -> dict[str, str]:
        """The secrets to show, because no configuration contains them."""
        kept = self.went_to is not None
        secrets = {} if kept else _to_show(self.order, self.keys)
        return {name: value for name, value in secrets.items() if value is not None}


def _placed(
    session: Session, order: Order, about: dict[str, str], create_on: Callable[[str, float | None], PeerResult]
) -> PeerResult:
    turns = Fleet(session.app).turns(about["public_key"], order.region, order.where, order.timeout)
    for name, left in turns:
        try:
            return create_on(name, left)
        except RETRY_ELSEWHERE as refusal:
            turns.refused(name, refusal)
    about.pop("gateway", None)
    raise turns.no_gateway()


def _keys(order: Order) -> Keys:
    preshared = make_preshared_key() if order.with_preshared_key else order.preshared_key
    if order.public_key is not None:
        return Keys(order.public_key, None, preshared)
    pair = make_key_pair()
    return Keys(pair.public_key, pair.private_key, preshared)


def _tell_program(session: Session, made: Made) -> None:
    document: dict[str, Any] = {**made.result.model_dump(mode="json"), "request_id": made.request_id, **made.shown}
    if made.went_to == "stdout" and made.config is not None:
        document["conf"] = made.config.render()
    elif made.went_to == "file":
        document["conf_file"] = str(made.order.conf)
    if made.failure is not None:
        document["error"] = as_document(made.failure)
    session.output.document(document)


def _tell_person(session: Session, made: Made) -> None:
    output = session.output
    sentence = f"{made.result.outcome} on {made.result.gateway} in {made.seconds * 1000:.0f} ms"
    if made.went_to == "stdout" and made.config is not None:
        output.note(sentence, "green")
        output.lines(made.config.render())
    else:
        named = {name.replace("_", " "): value for name, value in made.shown.items()}
        output.out.print(sentence, style="green")
        gateway = {"gateway's key": made.result.gateway_public_key, "endpoint": made.result.endpoint}
        output.show(
            facts({**peer_facts(made.result), **{name: value or None for name, value in gateway.items()}, **named})
        )
        if named:
            output.warn(ONCE.format(" and the ".join(named)))
    if made.went_to == "file":
        output.note(f"the client's configuration is in {made.order.conf} (mode 0600)", "green")
    if made.config is not None and made.order.qr:
        _draw(session, made.config)
    if made.failure is not None:
        output.error({"message": f"the peer is there, but no configuration was written: {made.failure}"})


def _draw(session: Session, config: ClientConfig) -> None:
    drawn = qr_code(config.render())
    if drawn is None:
        session.output.warn("no QR code holds this configuration, it is too long: --conf writes it to a file")
        return
    (code, width), console = drawn, session.output.out
    if sys.stdout.isatty() and console.width < width:
        session.output.warn(f"the QR code needs {width} columns and this terminal has {console.width}")
    else:
        console.print(code, soft_wrap=True)
