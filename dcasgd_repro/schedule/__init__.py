"""Schedules: the server's message log, made by workers, recorded, or from a file. No torch.

Open ``log.py`` for the log itself, ``workers.py`` for laws of times and the logs they make,
``delays.py`` for the recorded delays of a real run, ``live.py`` for a log that a cluster makes,
``from_run.py`` for workers like those of a recorded run.
"""

from dcasgd_repro.schedule.delays import FromDelays
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
    Skewed,
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
    "Exponential",
    "FromDelays",
    "FromFile",
    "FromRun",
    "Gamma",
    "Generated",
    "Law",
    "Live",
    "Lognormal",
    "Message",
    "Recording",
    "Schedule",
    "Skewed",
    "Summed",
    "delay_table",
    "stepping",
]
