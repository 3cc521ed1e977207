"""The figures of studies, by the name that a grid.yaml gives, and what all of them draw with.

A figure is a function from a study's Evidence to a matplotlib Figure, registered where it stands:

    @figure("forest")
    def forest(evidence: Evidence) -> Figure: ...

Any module of this folder may hold one. matplotlib is imported when something is drawn and not
before: commands that draw nothing read a grid.yaml too.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Any], "Figure"]  # what it is given is an Evidence, which lies floors above

_REGISTERED: dict[str, Draw] = {}


def figure(name: str) -> Callable[[Draw], Draw]:
    """Registers the function that it decorates as ``figure: NAME`` of a grid.yaml."""

    def register(draw: Draw) -> Draw:
        if name in _REGISTERED:
            raise ValueError(f"two figures are called {name}")
        _REGISTERED[name] = draw
        return draw

    return register


def registered() -> dict[str, Draw]:
    """Every figure of this folder, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_REGISTERED.items()))


def draw(evidence: Any) -> Figure:
    """The figure that the study's grid.yaml names."""
    drawn = registered()[evidence.study.figure](evidence)
    drawn.suptitle(f"{evidence.study.title} ({evidence.scale} scale)", fontsize=11)
    return drawn


def sheet(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, stem: Path) -> None:
    """Writes STEM.png and STEM.svg, the same bytes every time."""
    from matplotlib import rc_context

    drawn.savefig(stem.with_suffix(".png"), dpi=150)
    with rc_context({"svg.hashsalt": "dcasgd-repro"}):
        drawn.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def ticks_in_powers_of_two(axes: Any, form: str) -> None:
    """A logarithmic axis of x whose labels are plain numbers."""
    from matplotlib.ticker import FormatStrFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FormatStrFormatter(form))
    axes.xaxis.set_minor_locator(NullLocator())


def unframed(*all_axes: Any) -> None:
    """A faint grid, and no line at the top and on the right."""
    for axes in all_axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
