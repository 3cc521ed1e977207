"""Schedules: the server's message log, made by workers, recorded, or from a file. No torch.

Open ``log.py`` for the log itself, ``workers.py`` for laws of times and the logs they make,
``delays.py`` for delays, recorded or drawn, ``live.py`` for a log that a cluster makes.
"""

from dcasgd_repro.schedule.delays import DrawnDelays, FromDelays
from dcasgd_repro.schedule.live import Live, Recording
from dcasgd_repro.schedule.log import (
    KINDS,
    MAX_WORKERS,
    PULL,
    PUSH,
    FromFile,
    Message,
    Schedule,
    delay_table,
    repeats,
)
from dcasgd_repro.schedule.workers import (
    Constant,
    ConstantDelay,
    Exponential,
    Gamma,
    Generated,
    Law,
    Lognormal,
    Summed,
    stepping,
)

__all__ = [
    "KINDS",
    "MAX_WORKERS",
    "PULL",
    "PUSH",
    "Constant",
    "ConstantDelay",
    "DrawnDelays",
    "Exponential",
    "FromDelays",
    "FromFile",
    "Gamma",
    "Generated",
    "Law",
    "Live",
    "Lognormal",
    "Message",
    "Recording",
    "Schedule",
    "Summed",
    "delay_table",
    "repeats",
    "stepping",
]
