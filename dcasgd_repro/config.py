"""From a composed config to checked objects, with refusals in the words the user typed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcasgd_repro.errors import BadInput, check_choice, check_number, check_whole
from dcasgd_repro.schedule import Schedule

MAX_PUSHES = 100_000_000  # a log of them takes about 13 GB
MAX_SEED = 2**63 - 1  # torch's

LEAVES = ("rule", "schedule", "task", "lr", "engine")  # what conf/ builds an object from
PARTS = (*LEAVES, "model", "data", "seeds", "checkpoint")

# Keys inside groups that conf/ fills in from a key outside: the one on the right is the user's.
LINKS = {
    "rule.batch": "batch",
    "lr.workers": "workers",
    "lr.epochs": "epochs",
    "schedule.workers": "workers",
    "schedule.seed": "seeds.schedule",
    "task.seed": "seeds.data",
    "task.model.depth": "model.depth",
    "task.model.width": "model.width",
    "task.model.norm": "model.norm",
    "task.data.root": "data.root",
    "task.data.workers": "workers",
    "task.data.batch": "batch",
    "task.data.seed": "seeds.data",
    "task.data.augment": "augment",
    "task.data.train_images": "images",
    "task.data.test_images": "test_images",
    "task.data.validation": "validation",
}


@dataclass(frozen=True)
class Length:
    """How long a run is: an epoch is ``pushes x batch / images``, whatever M is."""

    images: int
    batch: int
    epochs: float

    def __post_init__(self) -> None:
        check_whole("images", self.images)
        check_whole("batch", self.batch)
        check_number("epochs", self.epochs, ends="()")
        if self.epochs * self.images / self.batch > MAX_PUSHES:
            made = f"with images={self.images} and batch={self.batch} that is too many pushes"
            raise BadInput("epochs", self.epochs, f"{made}; at most {MAX_PUSHES:,} fit")

    @property
    def pushes(self) -> int:
        """Gradients the server receives in all."""
        return self.pushes_of(self.epochs)

    def epoch(self, pushes: int) -> float:
        """Epochs passed after so many pushes."""
        return pushes * self.batch / self.images

    def pushes_of(self, epochs: float) -> int:
        """Gradients received when so many epochs have passed."""
        return max(1, math.ceil(epochs * self.images / self.batch - 1e-9))

    def ends(self, push: int, every: float) -> bool:
        """Whether a multiple of ``every`` epochs, or the run, ends with this push."""
        done = math.floor(self.epoch(push) / every + 1e-9)
        return push == self.pushes or done > math.floor(self.epoch(push - 1) / every + 1e-9)


def length_of(cfg: DictConfig) -> Length:
    """The run's length, once the keys that belong to no group have been checked."""
    check_complete(cfg)
    present = flat(cfg, apart=())
    for key in ("workers", "log_every"):
        check_whole(key, cfg[key])
    check_whole("seed", cfg.seed, 0, MAX_SEED)
    for key, value in cfg.seeds.items():
        check_whole(f"seeds.{key}", value, 0, MAX_SEED)
    check_number("eval_every", cfg.eval_every, 1e-6, 1e12)
    for inside, source in LINKS.items():
        value, meant = OmegaConf.select(cfg, inside), OmegaConf.select(cfg, source)
        if inside in present and value != meant:
            raise BadInput(inside, value, f"set {source}={value} instead, which all parts read")
    check_choice("augment", cfg.augment, (True, False))
    if (validation := cfg.get("validation")) is not None:  # absent from configs that are older
        check_whole("validation", validation)
        if "task.data.validation" not in present:
            remedy = f"task {task_name(cfg)} keeps no images for it; leave it out"
            raise BadInput("validation", validation, remedy)
    return Length(cfg.images, cfg.batch, cfg.epochs)


def stop_push(cfg: DictConfig, length: Length) -> int:
    """The push after which the run stops: that of ``stop_epoch``; by default its last."""
    epoch = cfg.get("stop_epoch")  # absent from configs that are older than the key
    if epoch is None:
        return length.pushes
    check_number("stop_epoch", epoch, ends="()")
    if epoch > length.epochs:
        remedy = f"the run has {length.epochs:g} epochs; give at most as many, or leave it out"
        raise BadInput("stop_epoch", epoch, remedy)
    return length.pushes_of(epoch)


def check_complete(cfg: DictConfig) -> None:
    """Refuses a config with a part or a key left open, or one filled in from nowhere."""
    for part in PARTS:
        if not OmegaConf.is_dict(cfg.get(part)):
            raise BadInput(part, cfg.get(part), "this is a group of keys; set one inside it")
        if part in LEAVES and "_target_" not in cfg[part]:
            raise BadInput(part, cfg[part], f"no {part} is chosen; leave out what empties it")
    raw = flat(cfg, apart=(), resolve=False)
    for key, value in raw.items():
        if value == "???" and cfg.scale is None:
            raise BadInput("scale", None, f"leaves {key} without a value; choose a scale")
        if value == "???":
            raise BadInput(key, value, "this key needs a value")
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        loops = [k for k, value in raw.items() if str(value) == f"${{{k}}}"]
        key = loops[0] if loops else str(getattr(error, "full_key", "config"))
        remedy = "this interpolation leads nowhere; give a value"
        raise BadInput(key, raw.get(key), remedy) from None


def build(cfg: DictConfig, group: str) -> Any:
    """The object a group of the config describes; a refusal names the key as the user types it."""
    try:
        return instantiate(cfg[group])
    except InstantiationException as error:
        at = re.search(r"full_key: (\S+)", str(error))
        where, cause = (at.group(1) if at else group), error.__cause__
        if isinstance(cause, BadInput):
            raise named(cfg, where, cause) from None
        if extra := re.search(r"unexpected keyword argument '(\w+)'", str(cause)):
            key = f"{where}.{extra.group(1)}"
            target = OmegaConf.select(cfg, where)._target_.rsplit(".", 1)[-1]
            raise BadInput(key, OmegaConf.select(cfg, key), f"{target} has no such key") from None
        raise BadInput(where, OmegaConf.select(cfg, where), str(cause or error)) from None


def schedule_of(cfg: DictConfig, pushes: int) -> Schedule:
    """The message log of the schedule group, up to its ``pushes``-th push."""
    times = build(cfg, "schedule")
    try:
        log: Schedule = times.messages(pushes)
    except BadInput as error:
        raise named(cfg, "schedule", error) from None
    return log


def named(cfg: DictConfig, where: str, error: BadInput) -> BadInput:
    """The refusal under its full key, or under the key that one was filled in from."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    absent = object()

    def at(path: str) -> Any:
        node: Any = raw
        for part in path.split("."):
            node = node.get(part, absent) if isinstance(node, dict) else absent
        return node

    key = f"{where}.{error.key}"
    while (link := re.fullmatch(r"\$\{([\w.]+)\}", str(at(key)))) is not None:
        key = link.group(1)
    return error if at(key) is absent else BadInput(key, error.value, error.remedy)


def task_name(cfg: DictConfig) -> str:
    """cifar10, synthetic, imagefolder or quadratic."""
    target = OmegaConf.select(cfg, "task.data._target_") or cfg.task._target_
    return str(target).rsplit(".", 1)[-1].lower()


def evaluated_on(cfg: DictConfig) -> str:
    """The images that a run's "test" errors are of: "test" or "validation"."""
    return "test" if cfg.get("validation") is None else "validation"


# Keys that name a place, a label or a way of working: the numbers do not depend on them.
APART = ("run_dir", "root", "exp", "scale", "resume", "checkpoint", "processes")
APART += ("stop_epoch", "probe")


def flat(cfg: Any, apart: Sequence[str] = APART, resolve: bool = True) -> dict[str, Any]:
    """A config, resolved unless told, as {dotted key: value}, less the keys in ``apart``."""

    def walk(node: Any, at: str) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {at: node}
        inside = [(f"{at}.{k}" if at else str(k), v) for k, v in node.items() if k not in apart]
        return {leaf: value for key, child in inside for leaf, value in walk(child, key).items()}

    return walk(OmegaConf.to_container(cfg, resolve=resolve), "")


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """In what two flat configs differ, for a reader: the first three keys; "" if in nothing."""
    keys = [k for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k)]
    told = ", ".join(f"{k}={theirs.get(k)} (now {ours.get(k)})" for k in keys[:3])
    return told + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


# Keys that are younger than some runs: null, they leave the hash of such a run what it was.
YOUNGER = ("validation", "task.data.validation")


def config_hash(cfg: DictConfig) -> str:
    """sha256 of the config, as ``flat`` sees it."""
    content = {k: v for k, v in flat(cfg).items() if v is not None or k not in YOUNGER}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
