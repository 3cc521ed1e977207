"""Update rules: pure, element-wise functions from a stale gradient to a direction.

Open ``rule.py`` for the protocol, ``averaging.py`` for ASGD and SSGD, ``delay_compensation.py``
for the paper's two variants.
"""

from dcasgd_repro.rules.averaging import ASGD, SSGD
from dcasgd_repro.rules.delay_compensation import DCASGDa, DCASGDc
from dcasgd_repro.rules.rule import Arrival, Direction, Rule

__all__ = ["ASGD", "SSGD", "Arrival", "DCASGDa", "DCASGDc", "Direction", "Rule"]
