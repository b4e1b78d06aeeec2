"""Keys made on the caller's side are WireGuard's own kind, and new each time."""

from __future__ import annotations

import base64
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from peerlane.tasks.values.keys import make_key_pair, make_preshared_key
from peerlane.tasks.wire.model import CreatePeer, check_public_key


def test_the_public_half_belongs_to_the_private_one() -> None:
    pair = make_key_pair()
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(pair.private_key))
    assert base64.b64encode(private.public_key().public_bytes_raw()).decode() == pair.public_key


@pytest.mark.needs("wg")
def test_wg_derives_the_same_public_key() -> None:
    pair = make_key_pair()
    derived = subprocess.run(["wg", "pubkey"], input=pair.private_key, capture_output=True, text=True, check=True)
    assert derived.stdout.strip() == pair.public_key


def test_a_public_key_passes_the_models_own_check() -> None:
    assert all(check_public_key(pair.public_key) == pair.public_key for pair in (make_key_pair() for _ in range(50)))


def test_a_preshared_key_passes_the_models_own_check() -> None:
    made = make_preshared_key()
    wish = CreatePeer(gateway="iad", public_key=make_key_pair().public_key, preshared_key=made)
    assert wish.preshared_key == made


def test_no_key_is_made_twice() -> None:
    assert len({make_key_pair().private_key for _ in range(50)}) == 50
    assert len({make_preshared_key() for _ in range(50)}) == 50


def test_the_private_half_does_not_show_in_a_repr() -> None:
    pair = make_key_pair()
    assert pair.private_key not in repr(pair)
    assert pair.public_key in repr(pair)
