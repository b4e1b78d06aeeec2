"""A private key that was made for a peer is shown, however the command ends."""

from __future__ import annotations

from pathlib import Path

from keys import some_key

from peerlane.tasks.cli.peer.create import Keys, Made, Order
from peerlane.tasks.cli.program import INTERRUPTED
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.wire.model import PeerResult


def test_ctrl_c_after_the_create_loses_no_key(tmp_path: Path) -> None:
    conf = tmp_path / "client.conf"
    keys = Keys(some_key(), private=some_key(), preshared=some_key())
    order = Order(
        gateway=None,
        region="eu",
        where={},
        wish={},
        public_key=None,
        with_preshared_key=True,
        preshared_key=None,
        timeout=None,
        request_token=None,
        conf=conf,
        replace_conf=False,
        qr=False,
    )
    made = Made(order, keys, PeerResult(outcome="created", gateway="iad", public_key=keys.public), "iad.r", 0.1)

    def interrupted() -> GatewayInfo:
        raise KeyboardInterrupt

    made.configure(interrupted)
    assert made.failure is not None
    assert (made.failure.code, made.failure.exit_code) == ("interrupted", INTERRUPTED)
    assert made.shown == {"private_key": keys.private, "preshared_key": keys.preshared}
    assert not conf.exists()
