"""A thousand peers awaited at once, over one subscription: python examples/flood.py GATEWAY [COUNT]"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter

from peerlane import AsyncGateway, PeerlaneError, make_key_pair


async def main(name: str, count: int) -> int:
    """Create them all, then delete them all; what came of each."""
    keys = [make_key_pair().public_key for _ in range(count)]
    async with AsyncGateway(name, timeout=60) as gateway:
        for act in (gateway.create_peer, gateway.delete_peer):
            began = time.perf_counter()
            answers = await asyncio.gather(*(act(key, bulk=True) for key in keys), return_exceptions=True)
            took = time.perf_counter() - began
            counts = Counter(
                a.code if isinstance(a, PeerlaneError) else getattr(a, "outcome", repr(a)) for a in answers
            )
            print(", ".join(f"{number} {code}" for code, number in counts.items()), f"in {took:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000)))
