"""Studies: the cells of a table or figure, as folders of experiments/ list them. No torch.

grid.yaml   what to run and to ask, see KEYS
claim.md    what the paper says, and what we call reproduced; written before the runs
paper.csv   the paper's numbers by cell; curves.csv its digitised curves
tuned.yaml  what `dcasgd-repro tune` found, by scale; written by it
"""

from __future__ import annotations

import itertools
import re
import shlex
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dcasgd_repro.errors import BadInput, check_number, check_whole
from dcasgd_repro.study.figures import registered
from dcasgd_repro.study.measures import MEASURES

FOLDER = Path(__file__).parents[2] / "experiments"
if not FOLDER.exists():  # installed from a wheel, which does not hold it: a checkout's, from there
    FOLDER = Path("experiments")

KEYS = {
    "title": "one line",
    "cells": "name: what one types after `dcasgd-repro train`",
    "for": "axis: [values]; a cell or claim with {axis} in it stands for one of each value",
    "runs_of": "the study whose runs these are, in place of cells",
    "tune": "a key and each cell's values of it, to choose the best by validation, see Tune",
    "tuned_by": "the study whose choice stands for {tuned}, or {tuned[CELL]} for another cell's",
    "first_seed": "its seeds are this one and those after it; 0 unless told",
    "claims": "a list, see Claim",
    "figure": "how it is drawn, see figures/",
    "measure": "what claims are about, see measures.py; last10 unless told",
    "epochs": "the epochs that train_error and batch_error are the mean of",
    "level": "the error, in percent, that epochs_to and seconds_to ask for",
    "stop_epoch": "where its runs stop; they may go on later, and count here as far as this",
    "extra_seeds": "cell: how many seeds more than the others, made last",
    "drop": "which drop of the learning rate the measure before_drop means; 1 unless told",
    "paper_scale": "the scale that speaks about the paper; paper unless told",
    "least_dc_ratio": "a claim whose correction is smaller than this is not reproduced",
    "size_counts": "whether half of the paper's difference counts, as in Table 1; true unless told",
    "words": "verdict: what to print in its place",
    "least_n": "seeds that a verdict needs; 3 unless told",
}

TUNED = re.compile(r"\{tuned(?:\[([^]]*)\])?\}")

RESERVED = (
    "seed",
    "seeds",
    "scale",
    "run_dir",
    "resume",
    "exp",
    "stop_epoch",
)  # not for a cell to say


@dataclass(frozen=True)
class Cell:
    """One configuration of a study; its runs differ in the seed alone."""

    name: str
    overrides: tuple[str, ...]

    @property
    def tuned(self) -> set[str]:
        """The tuned cells whose choice it takes: {tuned} is that of its own name."""
        return {of or self.name for word in self.overrides for of in TUNED.findall(word)}

    def at(self, chosen: Mapping[str, float]) -> Cell:
        """Itself with the choices filled in, those of the tuned cells by name."""
        words = (TUNED.sub(lambda m: f"{chosen[m[1] or self.name]:g}", w) for w in self.overrides)
        return replace(self, overrides=tuple(words))


class Later:
    """A choice that is not known yet: {tuned} and {tuned[CELL]} are formatted as themselves."""

    def __format__(self, spec: str) -> str:
        return "{tuned}"

    def __getitem__(self, cell: str) -> str:
        return f"{{tuned[{cell}]}}"


@dataclass(frozen=True)
class Tune:
    """A grid to tune: ``tune`` in a grid.yaml. A trial is a cell with one of its values.

    ``key``         of the config, as lr.base
    ``values``      cell: its values, ascending; every cell has as many
    ``factor``      between a grid's end and the value that it is extended by
    ``validation``  the last so many training images, which the trials are evaluated on
    """

    key: str
    values: Mapping[str, tuple[float, ...]]
    factor: float
    validation: int

    def __post_init__(self) -> None:
        for cell, values in self.values.items():
            for value in values:
                check_number(f"tune.values.{cell}", value, ends="()")
            if len(values) < 2:
                remedy = "a grid has 2 values or more: one alone is no choice"
                raise BadInput(f"tune.values.{cell}", list(values), remedy)
            if list(values) != sorted(set(values)):
                raise BadInput(
                    f"tune.values.{cell}", list(values), "give them ascending, each once"
                )
        if len({len(values) for values in self.values.values()}) > 1:
            counts = ", ".join(f"{cell}: {len(values)}" for cell, values in self.values.items())
            raise BadInput("tune.values", counts, "give every cell as many values: equal budgets")
        check_number("tune.factor", self.factor, 1, ends="()")
        check_whole("tune.validation", self.validation)


@dataclass(frozen=True)
class Claim:
    """What a study asks of its runs: a line of ``claims`` in its grid.yaml.

    ``lower: a, higher: b``           b - a > 0, or >= ``margin``
    ``equal: [a, b], within: d``      |b - a| < d, an equivalence
    ``cell: a, paper: x, within: r``  a is the paper's number x within a part r of it
    ``curve: a, within: d``           a's training error is the paper's curve's within d points
    ``order: [a, b, ...]``            a < b < ...
    ``probe: column, cell: a, above: x, below: y``  the median of a column of a's probe.csv lies
                                      between x and y (either may be left out), see probed.py

    ``paper``    the paper's own difference (its value, with ``cell``); None: it has no number
    ``measure``  of this claim, where it is not the study's
    ``than``     the ``lower`` of the claim whose difference this one's is compared with
    ``primary``  whether it is one of the study's primary claims, which are judged as one family
                 (Holm); all others are exploratory
    ``post_hoc`` whether it was written after its runs had been seen
    """

    kind: str  # lower, equal, cell, curve, order or probe
    cells: tuple[str, ...]  # lower and higher; the first of two, the second; one; all in order
    paper: float | None = None
    margin: float = 0.0
    within: float | None = None
    than: str | None = None
    measure: str | None = None
    column: str | None = None
    above: float | None = None
    below: float | None = None
    primary: bool = False
    post_hoc: bool = False

    @property
    def family(self) -> str:
        if self.post_hoc:
            return "post hoc"
        return "primary" if self.primary else "exploratory"

    @property
    def lower(self) -> str:
        return self.cells[0]

    @property
    def higher(self) -> str | None:
        """The cell whose measure minus that of ``lower`` is the claim's difference, if one is."""
        return self.cells[1] if self.kind in ("lower", "equal") else None

    def __str__(self) -> str:
        measure = f" in {self.measure}" if self.measure else ""
        if self.kind == "probe":
            above = "" if self.above is None else f"{self.above:g} < "
            below = "" if self.below is None else f" < {self.below:g}"
            return f"{above}median {self.column} of {self.lower}{below}"
        if self.kind == "cell":
            return f"{self.lower} within {self.within:.0%} of {self.paper:g}{measure}"
        if self.kind == "curve":
            return f"{self.lower} within {self.within:g} of the paper's curve{measure}"
        if self.kind == "equal":
            return f"{self.cells[0]} = {self.cells[1]} within {self.within:g}{measure}"
        if self.margin:
            return f"{self.higher} - {self.lower} >= {self.margin:g}{measure}"
        return f"{' < '.join(self.cells)}{measure}"


@dataclass(frozen=True)
class Study:
    """A folder of experiments/, read."""

    name: str
    folder: Path
    title: str
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...]
    runs_of: str  # the study whose runs these are: mostly itself
    figure: str
    measure: str
    least_dc_ratio: float = 0.0
    drop: int = 1
    size_counts: bool = True
    paper_scale: str = "paper"
    epochs: tuple[float, ...] = ()
    level: float = 50.0
    stop_epoch: float | None = None
    tune: Tune | None = None
    tuned_by: str | None = None  # a folder
    first_seed: int = 0
    extra_seeds: Mapping[str, int] = field(default_factory=dict)
    least_n: int = 3
    words: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def paper(self) -> pd.DataFrame:
        """The paper's numbers, a row for each cell that it has; empty where it has none."""
        return _table(self.folder / "paper.csv", ["cell"]).set_index("cell")

    @property
    def of_a_paper(self) -> bool:
        """Whether it compares with a paper: in a table, a curve or a claim."""
        claimed = any(claim.paper is not None for claim in self.claims)
        return claimed or len(self.paper) > 0 or len(self.curves) > 0

    @property
    def tuned(self) -> dict[str, Any]:
        """What its tuned.yaml says, by scale; empty without one. Raises BadInput."""
        path = self.folder / "tuned.yaml"
        if not path.exists():
            return {}
        try:
            content = yaml.safe_load(path.read_text())
            for of_scale in content.values():
                for cell, found in of_scale["cells"].items():
                    check_number(f"{cell}.value", found["value"], ends="()")
                    check_whole(f"{cell}.tried", len(found["tried"]), 2)
        except (OSError, yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError) as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise BadInput("tuned", path, f"not readable ({message}): {self.again('')}") from None
        return dict(content)

    def again(self, scale: str) -> str:
        """The command that makes its runs."""
        words = f"dcasgd-repro {'tune' if self.tune else 'reproduce'} {self.name}"
        return f"{words} scale={scale}" if scale else words

    def at(self, scale: str) -> Study:
        """The study with the cells that are runs at that scale. Raises BadInput.

        Of a grid to tune, one for each trial, as far as the grid was extended there. A choice of
        another study is filled in; without that choice it is refused.
        """
        if self.tune is not None:
            return self.trials(self.grid(scale))
        if self.tuned_by is None:
            return self
        source = study(self.tuned_by)
        if scale not in source.tuned:
            remedy = f"nothing is chosen for scale={scale} yet; first: {source.again(scale)}"
            raise BadInput("tuned_by", source.name, remedy)
        chosen = {name: cell["value"] for name, cell in source.tuned[scale]["cells"].items()}
        if lacking := sorted(set().union(*(cell.tuned for cell in self.cells)) - chosen.keys()):
            remedy = f"nothing is chosen for {', '.join(lacking)}; first: {source.again(scale)}"
            raise BadInput("tuned_by", source.name, remedy)
        return replace(self, cells=tuple(cell.at(chosen) for cell in self.cells), tuned_by=None)

    def grid(self, scale: str) -> dict[str, tuple[float, ...]]:
        """The values of each cell of a grid to tune, as far as it was extended at that scale."""
        assert self.tune is not None
        found = self.tuned.get(scale, {}).get("cells", {})
        return {
            cell: tuple(found[cell]["tried"]) if cell in found else values
            for cell, values in self.tune.values.items()
        }

    def trials(self, grid: Mapping[str, Sequence[float]]) -> Study:
        """The study with a cell for each value of a grid, named cell-value."""
        assert self.tune is not None
        held_out = f"validation={self.tune.validation}"
        cells = tuple(
            Cell(f"{c.name}-{value:g}", (*c.overrides, f"{self.tune.key}={value:g}", held_out))
            for c in self.cells
            for value in grid[c.name]
        )
        return replace(self, cells=cells, tune=None)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The paper's digitised curves: cell, workers, split, epoch or seconds, error."""
        columns = ["cell", "workers", "split", "epoch", "seconds", "error"]
        return _table(self.folder / "curves.csv", columns)


def study(name: str) -> Study:
    """The study of that name, or of the one name that begins so, or in that folder. BadInput.

    A word that could mean a folder here and the beginning of a name of ours is refused.
    """
    near = [known for known in names() if known.startswith(name)]
    folder = FOLDER / (near[0] if len(near) == 1 else name)
    if (Path(name) / "grid.yaml").exists():
        if near == [folder.name] and folder.resolve() != Path(name).resolve() and name != near[0]:
            remedy = f"a folder here and the beginning of {near[0]}; write ./{name} or {near[0]}"
            raise BadInput("study", name, remedy)
        folder = Path(name).resolve()
    grid = folder / "grid.yaml"
    if folder.parent.resolve() != FOLDER.resolve() and folder.name in names():
        remedy = f"results/{folder.name} belongs to the study in {FOLDER / folder.name}"
        raise BadInput("study", folder, f"give the folder another name: {remedy}")
    if not grid.exists():
        remedy = f"choose {', '.join(near or names()) or 'none here'}, or a folder with a grid.yaml"
        raise BadInput("study", name, f"no such study; {remedy}")
    try:
        content = yaml.safe_load(grid.read_text())
        return _read(folder, content)
    except BadInput:
        raise
    except (OSError, yaml.YAMLError) as error:
        raise BadInput("study", grid, f"not readable: {' '.join(str(error).split())}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        remedy = f"not understood ({type(error).__name__}: {error}); its keys: {', '.join(KEYS)}"
        raise BadInput("study", grid, remedy) from None


def names() -> list[str]:
    """The studies of this checkout."""
    return sorted(path.parent.name for path in FOLDER.glob("*/grid.yaml"))


def _read(folder: Path, content: Any) -> Study:
    grid = folder / "grid.yaml"
    if not isinstance(content, dict) or not {"title"} <= content.keys() <= KEYS.keys():
        raise BadInput("study", grid, f"give a title and cells; its keys are {', '.join(KEYS)}")
    if ("cells" in content) == ("runs_of" in content):
        raise BadInput("study", grid, "give cells, or runs_of: another study")
    axes = content.get("for") or {}
    if not isinstance(axes, dict) or not all(isinstance(axis, list) for axis in axes.values()):
        raise ValueError("for: give each axis a list of values")
    for key, choices in (("figure", registered()), ("measure", MEASURES)):
        if key in content and content[key] not in choices:
            message = f"{key}={content[key]}: choose {', '.join(choices)}"
            raise BadInput("study", grid, message)
    if "runs_of" in content:
        if content["runs_of"] == folder.name:
            raise BadInput("study", grid, "runs_of names another study")
        whole = study(str(content["runs_of"]))
        cells, runs_of = whole.cells, whole.runs_of
        with_runs = {key: getattr(whole, key) for key in ("tuned_by", "first_seed", "extra_seeds")}
        content = {key: value for key, value in with_runs.items() if value} | content
    else:
        if not isinstance(content["cells"], dict):
            remedy = "cells: write each as NAME: WORDS, what one types after `dcasgd-repro train`"
            raise BadInput("study", grid, remedy)
        for key, text in content["cells"].items():
            _declared(f"cell {key}", f"{key} {text}", {*axes, "tuned"}, grid)
            if lost := sorted(_axes_in(text, axes) - _axes_in(key, axes)):
                remedy = f"cell {key} runs with {{{lost[0]}}}; put it into its name too"
                raise BadInput("study", grid, remedy)
        cells = tuple(
            Cell(
                key.format(**point),
                tuple(shlex.split(str(text).format(**{"tuned": Later(), **point}))),
            )
            for key, text in content["cells"].items()
            for point in _points(axes, key)
        )
        runs_of = folder.name
    for line in content.get("claims") or []:
        _declared(f"claim {line}", " ".join(map(str, line.values())), axes, grid)
    claims = tuple(
        _claim(line, point)
        for line in content.get("claims") or []
        for point in _points(axes, line.values())
    )
    for cell in cells:
        if not re.fullmatch(r"[\w.+-]+", cell.name):
            raise BadInput(
                "study", grid, f"{cell.name!r} is no name for a cell: letters, digits, -_.+"
            )
        said = {
            word.lstrip("+~").partition("=")[0] for word in cell.overrides if "+exp=" not in word
        }
        if reserved := {word for word in said if word.split(".")[0] in RESERVED}:
            sets = f"cell {cell.name} sets {', '.join(sorted(reserved))}"
            remedy = f"{sets}, which is for reproduce to say"
            raise BadInput("study", grid, remedy)
    tune, tuned_by = _tune(content, cells), _tuned_by(folder, content, cells)
    first_seed = content.get("first_seed", 0)
    check_whole("first_seed", first_seed, 0)
    least_n = content.get("least_n", 3)
    check_whole("least_n", least_n, 3)
    if any(claim.kind == "curve" for claim in claims) and not content.get("epochs"):
        raise BadInput("study", grid, "a curve is compared at epochs: give epochs, as [16, 18, 20]")
    stop, extra = content.get("stop_epoch"), dict(content.get("extra_seeds") or {})
    known = {cell.name for cell in cells}
    for name, count in extra.items():
        if name not in known or not isinstance(count, int) or count < 1:
            message = f"extra_seeds has {name}: {count}; give a cell a whole number >= 1"
            raise BadInput("study", grid, message)
    if len(known) < len(cells):
        raise BadInput("study", grid, "two cells have one name")
    for claim in claims:
        for side in set(claim.cells) - known:
            raise BadInput("study", grid, f"a claim names {side}, which is no cell")
        if claim.measure not in (None, *MEASURES):
            remedy = f"choose {', '.join(MEASURES)}"
            raise BadInput("study", grid, f"{claim}: no such measure; {remedy}")
        others = [other for other in claims if other.lower == claim.than and other.higher]
        if claim.than and (len(others) != 1 or others[0] == claim):
            message = f"{claim}: than={claim.than} must be what one other claim says is lower"
            raise BadInput("study", grid, message)
    return Study(
        name=folder.name,
        folder=folder,
        title=str(content["title"]),
        cells=cells,
        claims=claims,
        runs_of=runs_of,
        figure=str(content.get("figure", "epochs")),
        measure=str(content.get("measure", "last10")),
        least_dc_ratio=float(content.get("least_dc_ratio", 0.0)),
        drop=int(content.get("drop", 1)),
        size_counts=bool(content.get("size_counts", True)),
        paper_scale=str(content.get("paper_scale", "paper")),
        epochs=tuple(float(epoch) for epoch in content.get("epochs") or ()),
        level=float(content.get("level", 50.0)),
        stop_epoch=None if stop is None else float(stop),
        tune=tune,
        tuned_by=tuned_by,
        first_seed=first_seed,
        extra_seeds=extra,
        least_n=least_n,
        words=dict(content.get("words") or {}),
    )


def _tune(content: Mapping[str, Any], cells: Sequence[Cell]) -> Tune | None:
    if "tune" not in content:
        if content.get("figure") == "lr":
            remedy = "draws a grid to tune, and this study has no tune; choose another, as table"
            raise BadInput("figure", "lr", remedy)
        return None
    given, names = content["tune"], {cell.name for cell in cells}
    wanted = {"key", "values", "factor", "validation"}
    if not isinstance(given, dict) or given.keys() != wanted:
        odd = sorted(given.keys() ^ wanted) if isinstance(given, dict) else given
        remedy = f"its keys are {', '.join(sorted(wanted))}, all needed: it chooses by images"
        raise BadInput("tune", odd, f"{remedy} kept out of training, and needs a task with images")
    if odd := sorted(
        {"runs_of", "tuned_by", "first_seed", "extra_seeds", "claims"} & content.keys()
    ):
        raise BadInput("tune", odd[0], "does not go with a grid to tune; leave it out")
    values = given["values"]
    if not isinstance(values, dict) or values.keys() != names:
        odd = ", ".join(sorted(names ^ set(values))) if isinstance(values, dict) else values
        raise BadInput("tune.values", odd, "give each cell its list of values, and no other one")
    for cell, of_cell in values.items():
        if not isinstance(of_cell, list):
            raise BadInput(f"tune.values.{cell}", of_cell, "give a list of numbers")
    grid = {cell.name: tuple(values[cell.name]) for cell in cells}
    return Tune(str(given["key"]), grid, given["factor"], given["validation"])


def _tuned_by(folder: Path, content: Mapping[str, Any], cells: Sequence[Cell]) -> str | None:
    """The folder of the study that tuned this one's cells."""
    taken = set[str]().union(*(cell.tuned for cell in cells))
    if "tuned_by" not in content:
        if taken:
            remedy = f"{', '.join(sorted(taken))}: name the study of {{tuned}}"
            raise BadInput("tuned_by", None, remedy)
        return None
    name = str(content["tuned_by"])
    beside = folder.parent / name
    source = study(str(beside) if (beside / "grid.yaml").exists() else name)
    if source.tune is None:
        raise BadInput("tuned_by", name, "that study has no tune in its grid.yaml")
    if not taken:
        raise BadInput("tuned_by", name, "no cell has {tuned} in it; write lr.base={tuned}")
    if odd := sorted(taken - source.tune.values.keys()):
        remedy = f"it tunes no {', '.join(odd)}; it tunes {', '.join(source.tune.values)}"
        raise BadInput("tuned_by", name, remedy)
    return str(source.folder)


CLAIMS = {  # kind of claim: the keys that it may have, those that it must have first
    "lower": ("lower", "higher", "margin", "than"),
    "equal": ("equal", "within"),
    "cell": ("cell", "within"),
    "curve": ("curve", "within"),
    "order": ("order",),
}


def _claim(line: Mapping[str, Any], point: Mapping[str, Any]) -> Claim:
    if "probe" in line:
        return _of_probe(line, point)
    kinds = [kind for kind in CLAIMS if kind in line]
    if len(kinds) != 1:
        raise ValueError(f"a claim has one of the keys {', '.join(CLAIMS)}")
    [kind] = kinds
    if odd := line.keys() - {*CLAIMS[kind], "paper", "measure", "primary", "post_hoc"}:
        raise ValueError(f"a claim with {', '.join(sorted(odd))}")
    cells = line[kind] if isinstance(line[kind], list) else [line[kind]]
    cells = [str(cell).format(**point) for cell in cells]
    if kind == "lower":
        cells.append(str(line["higher"]).format(**point))
    if (len(cells) < 2 and kind in ("equal", "order")) or (kind == "equal" and len(cells) > 2):
        raise ValueError(f"{kind}: give a list of cells, two where it is equal")
    paper = line.get("paper")
    if kind == "cell" and paper is None:
        raise ValueError("cell: give paper, the number it should be near")
    if line.get("primary") and line.get("post_hoc"):
        raise ValueError("a claim is primary or post_hoc, not both")
    if line.get("primary") and kind not in ("lower", "equal"):
        raise ValueError(f"primary: {kind} has no test, so it belongs to no family of tests")
    return Claim(
        kind=kind,
        cells=tuple(cells),
        paper=None if paper is None else float(paper),
        margin=float(line.get("margin", 0.0)),
        within=float(line["within"]) if "within" in CLAIMS[kind] else None,
        than=line["than"].format(**point) if "than" in line else None,
        measure=line.get("measure"),
        primary=bool(line.get("primary", False)),
        post_hoc=bool(line.get("post_hoc", False)),
    )


def _of_probe(line: Mapping[str, Any], point: Mapping[str, Any]) -> Claim:
    if odd := line.keys() - {"probe", "cell", "above", "below"}:
        raise ValueError(f"a claim with {', '.join(sorted(odd))}")
    above, below = (float(line[k]) if k in line else None for k in ("above", "below"))
    if above is None and below is None:
        raise ValueError("probe: give above, below or both")
    cells, column = (str(line["cell"]).format(**point),), str(line["probe"])
    return Claim("probe", cells, column=column, above=above, below=below)


def _points(axes: Mapping[str, Sequence[Any]], text: Any) -> Iterator[dict[str, Any]]:
    """The points that a text stands for: of the axes that it names, in their order."""
    named = [axis for axis in axes if axis in _axes_in(text, axes)]
    for values in itertools.product(*(axes[axis] for axis in named)):
        yield dict(zip(named, values, strict=True))


def _axes_in(text: Any, axes: Mapping[str, Any]) -> set[str]:
    """The axes that a text names, as {M}; of several, those that any of them names."""
    if isinstance(text, str):
        return _fields_in(text) & axes.keys()
    parts = text if isinstance(text, Iterable) else ()
    return {axis for part in parts for axis in _axes_in(part, axes)}


def _declared(what: str, text: str, axes: Iterable[str], grid: Path) -> None:
    """Refuses a text with an axis in it that is none of ``axes``."""
    if odd := sorted(_fields_in(text) - {*axes}):
        remedy = f"{what} has {{{odd[0]}}}, which is no axis; give its values, as for: "
        raise BadInput("study", grid, f"{remedy}{{{odd[0]}: [1, 2]}}")


def _fields_in(text: str) -> set[str]:
    """What a text has in braces, without [CELL] and formats."""
    names = (name for _, name, _, _ in string.Formatter().parse(text) if name)
    return {name.partition("[")[0] for name in names}


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=columns)
    table = pd.read_csv(path)
    if missing := {"cell"} - set(table.columns):
        raise BadInput("study", path, f"it has no column {missing.pop()}")
    return table
