"""Paired differences, their intervals and tests, and the words for what they say.

Every quantile and probability is Student's, from scipy. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ENOUGH = 3  # seeds, before a verdict is given
LEVEL = 0.05  # of every test, two one-sided ones at 2.5 % or, for an equivalence, at 5 %
HOLDS, SMALLER, FAILS, UNDECIDED = (
    "reproduced",
    "reproduced, smaller",
    "not reproduced",
    "undecided",
)


@dataclass(frozen=True)
class Difference:
    """A paired difference: its mean and its 95 % interval over n seeds."""

    mean: float
    half: float  # half the interval's width; infinite for one seed
    n: int

    @property
    def estimate(self) -> float:
        return self.mean

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def error(self) -> float:
        """The mean's standard error."""
        return self.half / float(stats.t.ppf(0.975, self.n - 1)) if self.n > 1 else math.inf

    def p_above(self, margin: float) -> float:
        """The one-sided p-value against ``difference <= margin``; 1 for fewer than two seeds."""
        return self._p(self.mean - margin)

    def p_below(self, margin: float) -> float:
        """The one-sided p-value against ``difference >= margin``."""
        return self._p(margin - self.mean)

    def _p(self, beyond: float) -> float:
        if self.n < 2:
            return 1.0
        if not self.error:
            return 0.0 if beyond > 0 else 1.0
        return float(stats.t.sf(beyond / self.error, self.n - 1))

    def __str__(self) -> str:
        return format(self, ".2f")

    def __format__(self, form: str) -> str:
        """Mean and half the interval, each as a number in that form."""
        if not self.n:
            return "-"
        width = f" ± {self.half:{form or '.2f'}}" if math.isfinite(self.half) else ""
        return f"{self.mean:+{form or '.2f'}}{width}"


NOTHING = Difference(math.nan, math.inf, 0)


def difference(of: Mapping[int, float], minus: Mapping[int, float]) -> Difference:
    """``of - minus`` at equal seeds: ``D ± t(n-1) sigma / sqrt(n)``, sigma with n - 1."""
    pairs = [of[seed] - minus[seed] for seed in sorted(of.keys() & minus.keys())]
    n = len(pairs)
    if n < 2:
        return Difference(pairs[0] if pairs else math.nan, math.inf, n)
    t = float(stats.t.ppf(0.975, n - 1))
    return Difference(float(np.mean(pairs)), t * float(np.std(pairs, ddof=1)) / math.sqrt(n), n)


def above(
    found: Difference, margin: float, least: float = 0.0, enough: int = ENOUGH
) -> tuple[str, float]:
    """Whether the difference is above ``margin``: a verdict, and the p-value of what decided it.

    The 95 % interval above the margin holds it; an interval below it, or below ``least``, the size
    that was asked for, does not. Undecided with fewer than ``enough`` seeds.
    """
    most = max(least, margin)
    if found.n >= enough and found.low > margin:
        return (SMALLER if found.high < least else HOLDS), 2 * found.p_above(margin)
    if found.n >= enough and found.high < most:
        return FAILS, 2 * found.p_below(most)
    return UNDECIDED, min(1.0, 2 * min(found.p_above(margin), found.p_below(margin)))


def equal(found: Difference, within: float, enough: int = ENOUGH) -> tuple[str, float]:
    """Whether the difference is inside ``± within``: a verdict, and the p-value of what decided it.

    Two one-sided tests at 5 %: the 90 % interval inside holds it (Schuirmann 1987); the 95 %
    interval outside does not. Undecided with fewer than ``enough`` seeds.
    """
    p = max(found.p_above(-within), found.p_below(within))
    if found.n >= enough and p <= LEVEL:
        return HOLDS, p
    if found.n >= enough and (found.low > within or found.high < -within):
        return FAILS, 2 * min(found.p_above(within), found.p_below(-within))
    return UNDECIDED, p


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the k-th smallest of n times n - k + 1, never falling."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(np.argsort(values, kind="stable")):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
