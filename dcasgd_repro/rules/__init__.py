"""Update rules: pure functions from a stale gradient to a direction, one file a family.

Open ``rule.py`` for the protocol. ``averaging.py``: ASGD and SSGD. ``delay_compensation.py``: the
paper's variants. ``step_size.py``: a rate that falls with the delay. ``buffers.py``: several
gradients to a step, and late ones ignored. ``momentum.py`` and ``look_ahead.py``: velocities, and
what may be sent in place of w.
"""

from dcasgd_repro.rules.averaging import ASGD, SSGD
from dcasgd_repro.rules.buffers import (
    IAG,
    FedBuff,
    Malenia,
    Rennala,
    Ringleader,
    Ringmaster,
    Throttle,
)
from dcasgd_repro.rules.delay_compensation import DCSSGD, DCASGDa, DCASGDc, DCASGDn
from dcasgd_repro.rules.look_ahead import DANADC, LWP, MSNAG, NAGASGD, SMEGA2, DANAZero, HeLoCo
from dcasgd_repro.rules.momentum import (
    DelayedNesterov,
    GapAware,
    MultiASGD,
    OrMo,
    ServerNAdam,
    ServerSGD,
)
from dcasgd_repro.rules.rule import Arrival, Direction, Rule
from dcasgd_repro.rules.step_size import (
    ASAP,
    AdaDelay,
    Clipped,
    DelayAdaptive,
    FedAsync,
    StalenessAware,
)

__all__ = [
    "ASAP",
    "ASGD",
    "DANADC",
    "DCSSGD",
    "IAG",
    "LWP",
    "MSNAG",
    "NAGASGD",
    "SMEGA2",
    "SSGD",
    "AdaDelay",
    "Arrival",
    "Clipped",
    "DANAZero",
    "DCASGDa",
    "DCASGDc",
    "DCASGDn",
    "DelayAdaptive",
    "DelayedNesterov",
    "Direction",
    "FedAsync",
    "FedBuff",
    "GapAware",
    "HeLoCo",
    "Malenia",
    "MultiASGD",
    "OrMo",
    "Rennala",
    "Ringleader",
    "Ringmaster",
    "Rule",
    "ServerNAdam",
    "ServerSGD",
    "StalenessAware",
    "Throttle",
]
