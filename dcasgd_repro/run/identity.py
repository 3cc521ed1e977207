"""What makes a run this run: which keys of its config count, and their hash. No torch.

A config is here what it says, in plain containers: nested dicts, lists and scalars.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CELLS = Path("outputs/cells")  # runs that studies share: each in a folder of its identity's name
# Keys that name a place, a label or a way of working: the numbers do not depend on them, and a
# stopped run may go on with other ones. Each is a key as it is typed, with all that is inside it.
LEFT_OUT: tuple[str, ...] = ("run_dir", "exp", "scale", "resume", "checkpoint", "stop_epoch")
LEFT_OUT += ("name", "tags")
LEFT_OUT += ("probe", "data.root", "task.data.root", "task.data.processes", "engine.address")
LEFT_OUT += ("schedule.run",)  # what was fitted to it counts
# With what a run is computed: studies count it as the same run, and its provenance says with what.
# A stopped run keeps them. The engine's precision is no means, unless it is the full one.
MEANS = ("engine", "sources.engine", "threads", "device", "deterministic", "fused", "log_every")
FULL = "float32"
# In what runs of one configuration differ; parts have the seed under the same name.
SEEDS = ("seed", "seeds")
# Keys that are younger than some runs: null, they leave the hash of such a run what it was.
YOUNGER: tuple[str, ...] = (
    "validation",
    "reactive",
    "lr_by",
    "task.data.validation",
    "rule.curvature",
)
YOUNGER += ("task.local_steps", "task.local_lr", "task.model.classes", "schedule.virtual")
YOUNGER += ("task.split", "task.alpha", "task.classes_per_worker")
# What null means for two of them, said aloud: it counts as null.
UNSAID = {"reactive": False, "lr_by": "pushes"}


def flat(config: Mapping[str, Any], without: Sequence[str] = LEFT_OUT) -> dict[str, Any]:
    """A config as {dotted key: value}, less the keys in ``without`` and all that is inside them.

    A value of UNSAID becomes None.
    """

    def walk(node: Any, at: str) -> dict[str, Any]:
        if not isinstance(node, Mapping):
            return {at: node}
        inside = [(f"{at}.{k}" if at else str(k), v) for k, v in node.items()]
        kept = [(key, child) for key, child in inside if key not in without]
        return {leaf: value for key, child in kept for leaf, value in walk(child, key).items()}

    found = walk(config, "")
    return {key: None if (key, value) in UNSAID.items() else value for key, value in found.items()}


def precision(config: Mapping[str, Any]) -> str:
    """What the gradients are computed in: "float32", the task's own, unless the engine says."""
    return str((config.get("engine") or {}).get("precision") or FULL)


def numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config, less what its numbers do not depend on. Full precision leaves no key."""
    content = flat(config, without=(*LEFT_OUT, *MEANS))
    used = precision(config)
    return content if used == FULL else {**content, "engine.precision": used}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what two flat configs differ, for a reader: the first three keys; "" if in nothing.

    Files that were edited on the way, was+now, follow on what they were.
    """
    keys = [
        k
        for k in sorted(ours.keys() | theirs.keys())
        if ours.get(k) != theirs.get(k)
        and not (k.startswith("sources.") and str(ours.get(k)).startswith(f"{theirs.get(k)}+"))
    ]
    named = ", ".join(f"{k}={theirs.get(k)} (now {ours.get(k)})" for k in keys[:3])
    return named + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the config, as ``flat`` sees it: it names a run's directory."""
    content = {k: v for k, v in flat(config).items() if v is not None or k not in YOUNGER}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def identity(config: Mapping[str, Any]) -> str:
    """sha256 of what the config says of the numbers, seed included: studies share runs by it.

    A key that is null counts as absent, so that a new key leaves the runs there are what they were.
    A schedule's file counts by its content, and a folder of images by its place.
    """
    content = numbers(config)
    given = {key: plain(value) for key, value in content.items() if value is not None}
    log = Path(str(content.get("schedule.path")))
    if log.is_file():
        given["schedule.path"] = hashlib.sha256(log.read_bytes()).hexdigest()
    if str(content.get("task.data._target_")).endswith("ImageFolder"):
        given["task.data.root"] = str(config["task"]["data"]["root"])
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def misplaced(config: Mapping[str, Any], path: Path) -> bool:
    """Whether ``path`` is one of CELLS and named for another run than the config's."""
    return path.parts[-3:-1] == CELLS.parts and path.name != identity(config)[:16]


def plain(value: Any) -> Any:
    """2 and 2.0 are one number."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole else value


def task_name(config: Mapping[str, Any]) -> str:
    """cifar10, synthetic, imagefolder or quadratic: the class of its data, else of the task."""
    data = config["task"].get("data") or {}
    data = data.get("make") or data  # one's own, see data/memory.py
    return str(data.get("_target_") or config["task"]["_target_"]).rsplit(".", 1)[-1].lower()


def images_a_push(config: Mapping[str, Any]) -> int:
    """Training images behind a push, by a config or a flat one: a mini-batch a local step."""
    content = flat(config, without=())
    return int(content["batch"] * (content.get("task.local_steps") or 1))


def evaluated_on(config: Mapping[str, Any]) -> str:
    """The images that a run's "test" errors are of: "test" or "validation"."""
    data = (config.get("task") or {}).get("data") or {}
    given = (config.get("validation"), data.get("validation"))
    return "test" if given == (None, None) else "validation"
