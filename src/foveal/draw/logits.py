"""Pictures of what shapes the logits beside a bias: soft-caps and sinks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from foveal.common.checks import as_number
from foveal.draw.curves import Curve, draw_curves
from foveal.ops.checks import as_softcap

MOST = 4
"""Lines of one picture, which has as many colours."""
X = [0.5 * step for step in range(-40, 41)]


def draw_softcap(path: Path, caps: Sequence[float] = (5.0, 10.0, 20.0)) -> Path:
    """Draw what soft-caps make of logits, beside what they would be.

    Args:
        path: where the picture goes.
        caps: one to four positive numbers.

    Raises:
        ValueError: a cap is not positive, or there are too many or none.
    """
    _check_count("softcap", caps)
    curves = [Curve("as it is", X, X, "faint")]
    for cap in caps:
        as_softcap(cap)
        bent = [cap * math.tanh(x / cap) for x in X]
        curves.append(Curve(f"softcap={cap:g}", X, bent))
    labels = {"xlabel": "scaled product of a query and a key", "ylabel": "logit"}
    return draw_curves(curves, path, **labels)


def draw_sinks(path: Path, sinks: Sequence[float] = (-5.0, 0.0, 5.0)) -> Path:
    """Draw which share of the weights sinks leave to the keys.

    Args:
        path: where the picture goes.
        sinks: one to four logits.

    Raises:
        ValueError: a logit is not finite, or there are too many or none.
    """
    _check_count("sinks", sinks)
    curves = []
    for sink in sinks:
        at = float(as_number("sinks", sink, -1e4, 1e4))
        left = [0.5 + 0.5 * math.tanh((x - at) / 2) for x in X]  # the logistic function of x - at
        curves.append(Curve(f"a sink at {sink:g}", X, left))
    labels = {"xlabel": "log-sum-exp of the keys", "ylabel": "sum of their weights"}
    return draw_curves(curves, path, **labels)


def _check_count(name: str, values: Sequence[float]) -> None:
    if not 1 <= len(values) <= MOST:
        raise ValueError(f"{name} must be 1 to {MOST} numbers to be drawn, got {len(values)}.")
