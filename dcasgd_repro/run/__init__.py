"""One run: ``run(plan)`` drives a plan's objects into a run directory, and goes on with it.

``Plan``, ``Length`` and ``run`` are loaded when they are first used: ``run.read`` needs no torch.
"""

from importlib import import_module
from typing import Any

_HOME = {"Length": "plan", "Plan": "plan", "run": "experiment"}
__all__ = ["Length", "Plan", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
