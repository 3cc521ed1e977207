"""Asynchronous SGD with stale gradients, replayed on one device.

The names below are loaded when they are first used, so that ``import dcasgd_repro`` stays free of
torch. A schedule is a message log, a task turns a vector and a mini-batch into a gradient, a rule
turns a stale gradient into a step, and ``simulate`` replays the one against the others:

>>> from dcasgd_repro import ASGD, Constant, Generated, Quadratic, Server, simulate
>>> log = Generated(workers=2, seed=0, compute=Constant(1.0)).messages(pushes=3)
>>> task = Quadratic((1.0,)).on("cpu")
>>> server = Server(ASGD(), task.initial(seed=0), workers=2)
>>> for step in simulate(task, server, log, lr=lambda pushes: 0.5):
...     print(step.push, step.worker, step.delay, server.w.item())
1 0 0 0.5
2 1 1 0.0
3 0 1 -0.25
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "rules": (
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
    ),
    "schedule": (
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
        "Lognormal",
        "Message",
        "Pauses",
        "Schedule",
        "Shifted",
        "SlowDowns",
        "Summed",
    ),
    "reactive": ("Reactive",),
    "simulate": ("Server", "Step", "Task", "simulate", "worker"),
    "tasks": ("Classification", "Quadratic"),
    "local": ("LocalSteps",),
    "models": ("ResNet", "ResNet50"),
    "data.images": ("CIFAR10", "Synthetic"),
    "data.folders": ("ImageFolder",),
    "data.memory": ("InMemory",),
    "optim": ("DCASGD", "RuleOptimizer"),
    "errors": ("BadInput", "Failure"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["__version__", *_MODULE]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds simulate.py here when it is loaded; the name is its function's.
        # Hydra looks the config's dcasgd_repro.simulate.simulate up attribute by attribute.
        if name in _MODULE and isinstance(value, ModuleType):
            value = getattr(value, name)
            setattr(value, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
