"""One CI build's peer, from an API host: python examples/one_peer.py GATEWAY

The key pair is made here; the private key goes into the client's configuration and nowhere else.
"""

from __future__ import annotations

import sys

from peerlane import Gateway, PeerlaneError, TimedOut, make_key_pair


def main(name: str) -> int:
    """Create, use, delete."""
    gateway = Gateway(name, timeout=5)
    pair = make_key_pair()
    try:
        peer = gateway.create_peer(pair.public_key, ttl=3600, labels={"build": "4711"})
    except TimedOut as error:
        print(f"not there, and it never will be: {error}")
        return 3
    except PeerlaneError as error:
        print(f"{error.code}: {error}" + (" (worth another try)" if error.retryable else ""))
        return 1
    print(f"{peer.outcome}: {', '.join(peer.allowed_ips)} through {peer.endpoint} ({peer.gateway_public_key})")
    print(gateway.delete_peer(peer.public_key).outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
