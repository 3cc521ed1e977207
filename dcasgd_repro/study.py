"""Studies: the cells of a table or figure, as folders of experiments/ list them. No torch.

grid.yaml   what to run and to ask, see KEYS
claim.md    what the paper says, and what we call reproduced; written before the runs
paper.csv   the paper's numbers by cell; curves.csv its digitised curves
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import DictConfig

from dcasgd_repro.config import APART, flat
from dcasgd_repro.errors import BadInput
from dcasgd_repro.measures import MEASURES

FOLDER = Path(__file__).parents[1] / "experiments"
if not FOLDER.exists():  # installed from a wheel, which does not hold it: a checkout's, from there
    FOLDER = Path("experiments")

KEYS = {
    "title": "one line",
    "cells": "name: what one types after `dcasgd-repro train`",
    "for": "axis: [values]; a cell or claim with {axis} in it stands for one of each value",
    "runs_of": "the study whose runs these are, in place of cells",
    "claims": "a list, see Claim",
    "figure": "how it is drawn, see figures.py",
    "measure": "what claims are about, see measures.py; last10 unless told",
    "epochs": "the epochs that train_error and batch_error are the mean of",
    "level": "the training error, in percent, that epochs_to asks for",
    "stop_epoch": "where its runs stop; they may go on later, and count here as far as this",
    "extra_seeds": "cell: how many seeds more than the others, made last",
    "drop": "which drop of the learning rate the measure before_drop means; 1 unless told",
    "paper_scale": "the scale that speaks about the paper; paper unless told",
    "least_dc_ratio": "a claim whose correction is smaller than this is not reproduced",
    "size_counts": "whether half of the paper's difference counts, as in Table 1; true unless told",
    "words": "what to print in place of a verdict",
}

FIGURES = ("table", "epochs", "seconds", "lambda", "workers", "readings", "prefix", "settings")
FIGURES += ("taylor",)
OURS = ("seed", "seeds", "scale", "run_dir", "resume", "exp", "stop_epoch")  # not for a cell to say


@dataclass(frozen=True)
class Cell:
    """One configuration of a study; its runs differ in the seed alone."""

    name: str
    overrides: tuple[str, ...]


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
    extra_seeds: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def paper(self) -> pd.DataFrame:
        """The paper's numbers, a row for each cell that it has; empty where it has none."""
        return _table(self.folder / "paper.csv", ["cell"]).set_index("cell")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The paper's digitised curves: cell, workers, split, epoch or seconds, error."""
        columns = ["cell", "workers", "split", "epoch", "seconds", "error"]
        return _table(self.folder / "curves.csv", columns)


def study(name: str) -> Study:
    """The study of that name, or of the one name that begins so, or in that folder. BadInput."""
    near = [known for known in names() if known.startswith(name)]
    folder = FOLDER / (near[0] if len(near) == 1 else name)
    if (Path(name) / "grid.yaml").exists():
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
    points = list(_points(content.get("for") or {}))
    for key, known in (("figure", FIGURES), ("measure", list(MEASURES))):
        if content.get(key, known[0]) not in known:
            told = f"{key}={content[key]}: choose {', '.join(known)}"
            raise BadInput("study", grid, told)
    if "runs_of" in content:
        if content["runs_of"] == folder.name:
            raise BadInput("study", grid, "runs_of names another study")
        whole = study(str(content["runs_of"]))
        cells, runs_of = whole.cells, whole.runs_of
    else:
        cells = tuple(
            Cell(key.format(**point), tuple(shlex.split(str(text).format(**point))))
            for key, text in content["cells"].items()
            for point in (points if "{" in key else [{}])
        )
        runs_of = folder.name
    claims = tuple(
        _claim(line, point)
        for line in content.get("claims") or []
        for point in (points if any("{" in str(v) for v in line.values()) else [{}])
    )
    for cell in cells:
        if not re.fullmatch(r"[\w.+-]+", cell.name):
            raise BadInput(
                "study", grid, f"{cell.name!r} is no name for a cell: letters, digits, -_.+"
            )
        said = {
            word.lstrip("+~").partition("=")[0] for word in cell.overrides if "+exp=" not in word
        }
        if ours := {word for word in said if word.split(".")[0] in OURS}:
            remedy = (
                f"cell {cell.name} sets {', '.join(sorted(ours))}, which is for reproduce to say"
            )
            raise BadInput("study", grid, remedy)
    stop, extra = content.get("stop_epoch"), dict(content.get("extra_seeds") or {})
    known = {cell.name for cell in cells}
    for name, count in extra.items():
        if name not in known or not isinstance(count, int) or count < 1:
            told = f"extra_seeds has {name}: {count}; give a cell a whole number >= 1"
            raise BadInput("study", grid, told)
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
            told = f"{claim}: than={claim.than} must be what one other claim says is lower"
            raise BadInput("study", grid, told)
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
        extra_seeds=extra,
        words=dict(content.get("words") or {}),
    )


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


def _points(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    if not all(isinstance(values, list) for values in axes.values()):
        raise ValueError("for: give each axis a list of values")
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=columns)
    table = pd.read_csv(path)
    if missing := {"cell"} - set(table.columns):
        raise BadInput("study", path, f"it has no column {missing.pop()}")
    return table


# A run is the same one whatever it is computed with; its provenance says with what.
MEANS = ("engine", "threads", "device", "deterministic", "fused", "log_every")


def identity(cfg: DictConfig) -> str:
    """sha256 of what the resolved config says of the numbers, seed included.

    A key that is null counts as absent, so that a new key leaves the runs there are what they were.
    A schedule's file counts by its content, and a folder of images by its place.
    """
    content = flat(cfg, apart=(*APART, *MEANS))
    given = {key: _plain(value) for key, value in content.items() if value is not None}
    log = Path(str(content.get("schedule.path")))
    if log.is_file():
        given["schedule.path"] = hashlib.sha256(log.read_bytes()).hexdigest()
    if str(content.get("task.data._target_")).endswith("ImageFolder"):
        given["task.data.root"] = str(cfg.task.data.root)
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """2 and 2.0 are one number."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole else value
