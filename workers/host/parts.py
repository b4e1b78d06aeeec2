"""What a supervisor keeps running, which end of it is final, and when it is started again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Seconds before the first start after a crash; doubled each time, up to ``LONGEST``.
SHORTEST, LONGEST = 1.0, 30.0
#: Seconds of life after which a process counts as healthy, and the next crash as its first.
HEALTHY = 60.0
#: Exit status of a supervised writer whose lane is another's; the supervisor itself then ends with 1.
HELD = 4
#: Exit status of a process that could not use Redis, and the longest pause before it is started again.
AWAY, AWAY_LONGEST = 3, 4.0
#: Seconds after which a part that follows is started, whether the others serve or not.
FOLLOWING = 10.0


@dataclass(frozen=True, slots=True)
class Part:
    """One process to keep running."""

    name: str
    command: Sequence[str]
    #: Whether an exit status says that starting it again would not help, given how many seconds it had lived: without
    #: end, once a watched part has served.
    final: Callable[[int, float], bool]
    #: Whether a first start that fails, and says why on standard output, ends all. Only if its output is read.
    decides: bool = False
    #: Whether it says by a pipe that it goes on (``pulse``); its command then ends with ``--pulse`` and a descriptor.
    watched: bool = False
    #: Whether the service is ready only once this watched process serves.
    needed: bool = True
    #: Whether its first start waits until the needed ones serve, ``FOLLOWING`` seconds at most: it would only keep
    #: them from the processor.
    follows: bool = False


def writer_is_final(status: int, lived: float) -> bool:
    """Whether a writer's status is final. 2: bad settings. ``HELD``. 1 soon after a start: the device is unusable."""
    return status in (2, HELD) or (status == 1 and lived < HEALTHY)


def observer_is_final(status: int, lived: float) -> bool:
    """Whether an observer's status is final. 2: bad settings. No other end of an observer ends the writer."""
    del lived
    return status == 2


def pause_after(crashes: int, status: int = 1) -> float:
    """Seconds until the next start, after a number of crashes in a row, the last with this status."""
    return min(SHORTEST * 2 ** min(crashes - 1, 10), AWAY_LONGEST if status == AWAY else LONGEST)
