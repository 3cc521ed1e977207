"""Schedules: the server's message log, made by workers, recorded, or from a file. No torch.

Open ``log.py`` for the log itself, ``workers.py`` for laws of times and the logs they make,
``disturbed.py`` for workers that fail, pause, join late or wait at the server, ``delays.py`` for
delays, recorded or drawn, ``live.py`` for a log that a cluster makes.
"""

from dcasgd_repro.schedule.delays import DrawnDelays, FromDelays
from dcasgd_repro.schedule.disturbed import (
    Disturbed,
    Drift,
    Failures,
    Late,
    Pauses,
    SlowDowns,
    disturbed,
)
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
    "Disturbed",
    "DrawnDelays",
    "Drift",
    "Exponential",
    "Failures",
    "FromDelays",
    "FromFile",
    "Gamma",
    "Generated",
    "Late",
    "Law",
    "Live",
    "Lognormal",
    "Message",
    "Pauses",
    "Recording",
    "Schedule",
    "SlowDowns",
    "Summed",
    "delay_table",
    "disturbed",
    "repeats",
    "stepping",
]
