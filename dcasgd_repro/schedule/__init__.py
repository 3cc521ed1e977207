"""Schedules: the server's message log, made by workers, recorded, or from a file. No torch.

Open ``log.py`` for the log itself, ``workers.py`` for laws of times and the logs they make,
``disturbed.py`` for workers that fail, pause, join late or wait at the server, ``delays.py`` for
delays, recorded or drawn, ``live.py`` for a log that a cluster makes, ``from_run.py`` for workers
like those of a recorded run.
"""

from dcasgd_repro.schedule.delays import DrawnDelays, FromDelays
from dcasgd_repro.schedule.disturbed import (
    Disturbed,
    Drift,
    Failures,
    Late,
    Pauses,
    SlowDowns,
    answered,
)
from dcasgd_repro.schedule.from_run import FromRun
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
    Busy,
    Constant,
    ConstantDelay,
    Exponential,
    Gamma,
    Generated,
    Law,
    Lognormal,
    Shifted,
    Summed,
    stepping,
)

__all__ = [
    "KINDS",
    "MAX_WORKERS",
    "PULL",
    "PUSH",
    "Busy",
    "Constant",
    "ConstantDelay",
    "Disturbed",
    "DrawnDelays",
    "Drift",
    "Exponential",
    "Failures",
    "FromDelays",
    "FromFile",
    "FromRun",
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
    "Shifted",
    "SlowDowns",
    "Summed",
    "answered",
    "delay_table",
    "repeats",
    "stepping",
]
