"""What was measured of one contender."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Result:
    """What was measured of one contender in one run of a case.

    seconds: median over the rounds. best: the shortest. times_peer: how often faster than the
    case's peer, median against median. extra_bytes: what one call adds to the memory of a fresh
    process, or None where it was not measured.
    """

    contender: str
    run: str
    seconds: float
    best: float
    times_peer: float | None = None
    extra_bytes: int | None = None
    gflops: float | None = None  # of the flops that the case needs, by the median
    share_of_products: float | None = None  # of the machine's limit for matrix products
    share_of_bandwidth: float | None = None
    rounds: list[float] = field(default_factory=list)
