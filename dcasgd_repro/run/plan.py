"""A run as objects: ``plan_of`` makes a Plan of a composed config; below it nothing sees a config.

A Python user makes a ``Plan`` without any config.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcasgd_repro.errors import BadInput, check_choice, check_number, check_whole, in_words
from dcasgd_repro.run.compose import OWN_LINKS
from dcasgd_repro.run.identity import config_hash, flat, task_name
from dcasgd_repro.run.read import ENDED, status_of
from dcasgd_repro.run.sources import sources
from dcasgd_repro.schedule import FromRun, Live, Schedule, stepping

MAX_PUSHES = 100_000_000  # a log of them takes about 13 GB
NAME = r"\w[\w.,=+-]{0,119}"  # a run's: it is a folder's too
MAX_SEED = 2**63 - 1  # torch's

# A Plan's fields, and the keys that a user types for them.
PROBES = {"probe_every": "probe.every", "batch_error_every": "probe.batch_error_every"}
LEAVES = ("rule", "schedule", "task", "lr", "engine")  # what conf/ builds an object from
LOCAL = ("local_steps", "local_lr")  # keys of any task, see local.py
PARTS = (*LEAVES, "model", "data", "seeds", "checkpoint")
# The other keys of every config, the oldest kept ones too.
SINGLE: tuple[str, ...] = ("exp", "scale", "workers", "seed", "backup", "augment", "images")
SINGLE += ("batch", "epochs", "fused", "device", "deterministic", "threads", "log_every")
SINGLE += ("eval_every", "resume", "run_dir")


@dataclass(frozen=True)
class Length:
    """How long a run is: an epoch is ``pushes x batch x local steps / images``, whatever M is."""

    images: int
    batch: int
    epochs: float
    local_steps: int = 1  # mini-batches a push, see local.py

    def __post_init__(self) -> None:
        check_whole("images", self.images)
        check_whole("batch", self.batch)
        check_whole("local_steps", self.local_steps)
        check_number("epochs", self.epochs, ends="()")
        if self.epochs * self.images / self.images_a_push > MAX_PUSHES:
            made = f"with images={self.images} and batch={self.batch} that is too many pushes"
            raise BadInput("epochs", self.epochs, f"{made}; at most {MAX_PUSHES:,} fit")

    @property
    def images_a_push(self) -> int:
        return self.batch * self.local_steps

    @property
    def pushes(self) -> int:
        """Gradients the server receives in all."""
        return self.pushes_of(self.epochs)

    def epoch(self, pushes: int) -> float:
        """Epochs passed after so many pushes."""
        return pushes * self.images_a_push / self.images

    def pushes_of(self, epochs: float) -> int:
        """Gradients received when so many epochs have passed."""
        return max(1, math.ceil(epochs * self.images / self.images_a_push - 1e-9))

    def stop(self, epoch: float | None) -> int:
        """The push that a stop at ``epoch`` comes after; without one, the last. Raises BadInput."""
        if epoch is None:
            return self.pushes
        check_number("stop_epoch", epoch, ends="()")
        if epoch > self.epochs:
            remedy = f"the run has {self.epochs:g} epochs; give at most as many, or leave it out"
            raise BadInput("stop_epoch", epoch, remedy)
        return self.pushes_of(epoch)

    def ends(self, push: int, every: float) -> bool:
        """Whether a multiple of ``every`` epochs, or the run, ends with this push."""
        done = math.floor(self.epoch(push) / every + 1e-9)
        return push == self.pushes or done > math.floor(self.epoch(push - 1) / every + 1e-9)


@dataclass(frozen=True)
class Plan:
    """One run: what it computes, how far, with what, and where it is written.

    ``rule``, ``workers``  an update rule, and M
    ``task``               a leaf: ``task.on(device)`` is the Task of the core
    ``schedule``           a leaf: ``schedule.messages(pushes)`` is the message log
    ``rate``               epochs passed -> learning rate
    ``length``             images, batch and epochs
    ``lr_by``              "updates": the rate follows the updates of w, each for a push; None: the
                           pushes, those that the rule ignores or keeps too
    ``engine``             ``simulate``, or a faster one with its signature; a live one, as Ray,
                           makes the messages itself, and its schedule is ``Live``
    ``backup``             when w_bak(m) is written, see ``Server``
    ``initial_seed``       of the first weights
    ``stop_epoch``         where the run stops, to go on later; None: at its end
    ``eval_every``         epochs between evaluations
    ``log_every``          pushes between rows of metrics.csv
    ``probe_every``, ``batch_error_every``  pushes between measurements of the probe; None: never
    ``device``, ``threads``, ``deterministic``, ``fused``  with what it is computed
    ``checkpoint_s``       seconds between checkpoints; 0: after every push
    ``resume``, ``run_dir``  see ``directory``
    ``name``, ``scale``    labels
    ``title``, ``tags``    of the run, see ``called``; None: by what it is
    ``schedule_name``, ``typed``  for readers: the schedule's name, and the keys that were typed
    ``config``             what its config said, in plain containers: it is written beside the run,
                           and tells it from others. Without one, the fields above spelled out
    ``named``              gives a refusal of a part its full name: (part, refusal) -> refusal
    """

    rule: Any
    task: Any
    schedule: Any
    rate: Callable[[float], float]
    length: Length
    workers: int
    lr_by: str | None = None
    engine: Callable[..., Iterator[Any]] | None = None  # None: simulate
    backup: str = "pull"
    initial_seed: int = 0
    stop_epoch: float | None = None
    eval_every: float = 1.0
    log_every: int = 50
    probe_every: int | None = None
    batch_error_every: int | None = None
    device: str = "auto"
    threads: int | None = None
    deterministic: str | bool = "auto"
    fused: bool = False
    checkpoint_s: float = 60.0
    resume: str = "auto"
    run_dir: str | Path | None = None
    name: str | None = None
    scale: str | None = None
    title: str | None = None
    tags: Sequence[str] = ()
    schedule_name: str | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    named: Callable[[str, BadInput], BadInput] = field(default=lambda part, error: error)

    def __post_init__(self) -> None:
        for key in ("workers", "log_every"):
            check_whole(key, getattr(self, key))
        check_number("eval_every", self.eval_every, 1e-6, 1e12)
        check_number("checkpoint.every_s", self.checkpoint_s)
        check_choice("fused", self.fused, (True, False))
        if self.lr_by is not None:
            check_choice("lr_by", self.lr_by, ("pushes", "updates"))
        check_choice("resume", self.resume, ("auto", "never", "edited"))
        if self.resume == "edited" and self.run_dir is None:
            raise BadInput("resume", self.resume, "name the run that goes on, with run_dir=DIR")
        if self.run_dir is not None and not str(self.run_dir).strip():
            raise BadInput("run_dir", self.run_dir, "name a directory")
        for key in ("probe_every", "batch_error_every"):
            if (every := getattr(self, key)) is not None:
                check_whole(PROBES[key], every)
        _ = self.stop  # which checks stop_epoch
        texts = isinstance(self.tags, Sequence) and not isinstance(self.tags, str)
        if not texts or not all(isinstance(tag, str) for tag in self.tags):
            raise BadInput("tags", self.tags, "give a list of words, as [first,wide]")
        if self.title is not None and not re.fullmatch(NAME, str(self.title)):
            raise BadInput(
                "name",
                self.title,
                "begin with a letter or digit; then letters, digits, . , = + - _",
            )
        # They need torch, which the objects of a plan have loaded.
        from dcasgd_repro.run.check import check_contract, check_is_rule

        check_is_rule(self.rule)
        check_contract(self.rule, self.workers)
        self._agree()
        if not self.config:
            object.__setattr__(self, "config", with_sources(_spelled_out(self)))

    @property
    def parts(self) -> dict[str, Any]:
        """The objects that the run is made of, by the keys that choose them."""
        found = {"rule": self.rule, "schedule": self.schedule, "lr": self.rate}
        found |= {key: getattr(self.task, key, None) for key in ("model", "data")}
        return found | {"task": self.task, "engine": self.engine}

    @property
    def called(self) -> str:
        """The run's name: its title, or ``dcasgd_a-M8-seed0`` and what was typed beside."""
        if self.title is not None:
            return str(self.title)
        words = [self.rule.name, f"M{self.workers}", f"seed{self.config['seed']}"]
        words += [f"{key.rpartition('.')[2]}={value}" for key, value in self.typed.items()]
        return re.sub(r"[^\w.,=+-]+", "_", "-".join(words))[:120]

    @property
    def live(self) -> bool:
        """Whether the messages arise as the run goes, on a cluster."""
        return getattr(self.engine, "live", False)

    def means(self) -> tuple[str, int | None, str | bool]:
        """What ``set_device`` takes; a live run, unless told otherwise, has one thread a process.

        Its driver and its server compute on the CPU.
        """
        if not self.live:
            return self.device, self.threads, self.deterministic
        device = "cpu" if self.device == "auto" else self.device
        return device, self.threads or 1, self.deterministic

    def _agree(self) -> None:
        """Refuses parts that do not go together, or were made for another number of workers."""
        if self.live != isinstance(self.schedule, Live):
            remedy = "engine=ray and schedule=live go together: give both"
            raise BadInput("schedule", type(self.schedule).__name__.lower(), remedy)
        if self.live and self.lr_by == "updates":
            remedy = "its driver does not see them in time; leave it out"
            raise BadInput("lr_by", self.lr_by, f"with engine=ray: {remedy}")
        if self.live and self.fused:
            raise BadInput(
                "fused", self.fused, "the server of engine=ray has no such; leave it out"
            )
        if getattr(self.schedule, "rule", self.rule) != self.rule:
            raise BadInput("schedule.rule", self.schedule.rule, f"the plan has {self.rule}")
        data = getattr(self.task, "data", None)
        agree = [
            ("schedule.workers", getattr(self.schedule, "workers", None), self.workers),
            ("task.data.workers", getattr(data, "workers", None), self.workers),
            ("task.local_steps", getattr(self.task, "local_steps", 1), self.length.local_steps),
            ("task.data.batch", getattr(data, "batch", None), self.length.batch),
            ("task.data.train_images", getattr(data, "train_images", None), self.length.images),
        ]
        for key, theirs, ours in agree:
            if theirs is not None and theirs != ours:
                raise BadInput(key, theirs, f"the plan has {ours}; make both the same")

    def lr(self, server: Any) -> Callable[[int], float]:
        """A function of the pushes received so far, which returns the rate of the next push."""

        def rate(pushes: int) -> float:
            passed = server.t if self.lr_by == "updates" else pushes
            return self.rate(self.length.epoch(passed))

        return rate

    @property
    def stop(self) -> int:
        """The push after which the run stops: that of ``stop_epoch``; by default its last."""
        return self.length.stop(self.stop_epoch)

    def log(self) -> Schedule:
        """The message log, up to the run's last push."""
        return _log(self.schedule, self.length.local_steps, self.length.pushes, self.named)

    def directory(self, now: str) -> Path:
        """``run_dir``; else, with resume=auto, this config's last run; else a new directory.

        New ones are outputs/<name>/<now>-<hash of the config>.
        """
        if self.run_dir is not None:
            return Path(str(self.run_dir))
        rule = type(self.rule).__name__.lower()
        place = Path("outputs") / (self.name or f"{task_name(self.config)}_{rule}")
        mark = config_hash(self.config)[:8]
        found = sorted(place.glob(f"*-{mark}")) if self.resume == "auto" else []
        runs = [(status_of(path) not in ENDED, path) for path in found if status_of(path)]
        # An unfinished one before a finished one, then the latest.
        return max(runs)[1] if runs else place / f"{now}-{mark}"


def plan_of(
    cfg: DictConfig, schedule_name: str | None = None, typed: Mapping[str, Any] | None = None
) -> Plan:
    """The plan that a composed config describes. Raises BadInput, under the key as it is typed.

    ``schedule_name`` and ``typed`` are for readers, see ``Plan``.
    """
    length = length_of(cfg)
    rule, schedule, rate, engine = (build(cfg, key) for key in LEAVES if key != "task")
    schedule = _answered(cfg, schedule, lambda: rule, schedule_name, typed)
    probe = cfg.get("probe")  # this and others are absent from configs that are older than the key
    if probe is not None and not OmegaConf.is_dict(probe):
        raise BadInput("probe", probe, "this is a group of keys; set one inside it")
    probe = probe or {}
    return Plan(
        rule=rule,
        task=task_of(cfg, rate),
        schedule=schedule,
        rate=rate,
        lr_by=cfg.get("lr_by"),
        length=length,
        workers=cfg.workers,
        engine=engine,
        backup=cfg.backup,
        initial_seed=cfg.seeds.initial,
        stop_epoch=cfg.get("stop_epoch"),
        eval_every=cfg.eval_every,
        log_every=cfg.log_every,
        probe_every=probe.get("every"),
        batch_error_every=probe.get("batch_error_every"),
        device=cfg.device,
        threads=cfg.threads,
        deterministic=cfg.deterministic,
        fused=cfg.fused,
        checkpoint_s=cfg.checkpoint.every_s,
        resume=cfg.resume,
        run_dir=cfg.run_dir,
        name=cfg.exp,
        scale=cfg.scale,
        title=cfg.get("name"),
        tags=plain_list(cfg.get("tags")),
        schedule_name=schedule_name,
        typed=typed or {},
        config=plain_config(cfg),
        named=partial(named, cfg),
    )


def task_of(cfg: DictConfig, rate: Any) -> Any:
    """The task's leaf; with local steps, of which conf/task has the keys, a ``LocalSteps`` of it.

    ``local_lr`` is the learning rate's ``base`` by default: ASGD then adds a worker's whole move.
    """
    task = build(cfg, "task")
    steps, local_lr = (cfg.task.get(key) for key in LOCAL)
    if steps is None:
        if local_lr is not None:
            raise BadInput("task.local_lr", local_lr, "is read with task.local_steps=H only")
        return task
    if local_lr is None and (local_lr := getattr(rate, "base", None)) is None:
        raise BadInput("task.local_lr", None, "this lr has no base to take it from; give a number")
    from dcasgd_repro.local import LocalSteps  # torch

    try:
        several = LocalSteps(task, steps, local_lr)
    except BadInput as error:
        raise BadInput(f"task.{error.key}", error.value, error.remedy) from None
    return task if steps == 1 else several


def log_of(
    cfg: DictConfig,
    pushes: int,
    schedule_name: str | None = None,
    typed: Mapping[str, Any] | None = None,
) -> Schedule:
    """The message log of the config's schedule, up to its ``pushes``-th push.

    No torch, unless the rule has a part in it. The last two are for readers, see ``Plan``.
    """
    schedule = build(cfg, "schedule")
    schedule = _answered(cfg, schedule, lambda: rule_of(cfg), schedule_name, typed)
    if isinstance(schedule, Live):
        raise BadInput("schedule", "live", "a cluster makes it as it runs: train with engine=ray")
    return _log(schedule, length_of(cfg).local_steps, pushes, partial(named, cfg))


def rule_of(cfg: DictConfig) -> Any:
    """The config's rule, held to what a rule must do. Raises BadInput."""
    from dcasgd_repro.run.check import check_contract, check_is_rule  # torch

    rule = build(cfg, "rule")
    check_is_rule(rule)
    check_contract(rule, cfg.workers)
    return rule


def _answered(
    cfg: DictConfig,
    schedule: Any,
    rule: Callable[[], Any],
    name: str | None,
    typed: Mapping[str, Any] | None,
) -> Any:
    """The schedule, with reactive=true one whose workers the rule may stop."""
    if not hasattr(schedule, "messages"):
        remedy = "derive it from dcasgd_repro.Law for a law of times, or give it messages(pushes)"
        raise BadInput("schedule", type(schedule).__name__, remedy)
    wanted = cfg.get("reactive")
    if wanted is None:
        return schedule
    check_choice("reactive", wanted, (True, False))
    if not wanted:
        return schedule
    from dcasgd_repro.reactive import Reactive  # torch

    made = rule()
    try:
        return Reactive(schedule, made)
    except BadInput as error:
        if name is None or f"schedule.{error.key}" in (typed or {}):
            raise named(cfg, "schedule", error) from None
        raise BadInput("schedule", name, error.remedy) from None


def _log(
    schedule: Any, steps: int, pushes: int, full: Callable[[str, BadInput], BadInput]
) -> Schedule:
    try:
        log = stepping(schedule, steps).messages(pushes)
    except BadInput as error:
        raise full("schedule", error) from None
    if not isinstance(log, Schedule):
        named, kind = type(schedule).__name__, type(log).__name__
        raise BadInput("schedule", f"{named}.messages", f"returns a {kind}; give a Schedule")
    return log


def _spelled_out(plan: Plan) -> dict[str, Any]:
    """What a config would have said of a plan that was made without one.

    Raises BadInput for a part whose parameters cannot be seen: two runs would look like one.
    """
    for key in ("rule", "schedule", "task", "rate"):
        if not is_dataclass(getattr(plan, key)):
            remedy = "make it a dataclass, whose fields tell this run from others"
            raise BadInput(key, getattr(plan, key), remedy)
    kept: tuple[str, ...] = (
        "backup",
        "lr_by",
        "eval_every",
        "log_every",
        "stop_epoch",
        "device",
        "threads",
    )
    kept += ("deterministic", "fused", "resume", "scale", "workers")
    return {
        "exp": plan.name,
        "seed": plan.initial_seed,
        "seeds": {"initial": plan.initial_seed},
        **{key: getattr(plan, key) for key in kept},
        **{key: getattr(plan.length, key) for key in ("images", "batch", "epochs")},
        "rule": spelled(plan.rule),
        "schedule": spelled(plan.schedule),
        "task": _as_configured(spelled(plan.task)),
        "lr": spelled(plan.rate),
        "engine": spelled(plan.engine) or {"_target_": "dcasgd_repro.simulate.simulate"},
        "checkpoint": {"every_s": plan.checkpoint_s},
        "run_dir": None if plan.run_dir is None else str(plan.run_dir),
    }


def _as_configured(task: dict[str, Any]) -> dict[str, Any]:
    """A task with local steps as conf/ has it: two more keys of the task."""
    if "local_steps" not in task or "task" not in task:
        return task
    return {**task["task"], **{key: task[key] for key in LOCAL}}


def spelled(leaf: Any) -> Any:
    """An object as a config would name it: a dataclass by its class and fields, else as text."""
    if is_dataclass(leaf) and not isinstance(leaf, type):
        parts = {f.name: spelled(getattr(leaf, f.name)) for f in fields(leaf)}
        return {"_target_": _place(type(leaf)), **parts}
    if isinstance(leaf, partial):
        given = {key: spelled(value) for key, value in leaf.keywords.items()}
        return {"_target_": _place(leaf.func), "_args_": spelled(leaf.args), **given}
    if isinstance(leaf, Sequence) and not isinstance(leaf, str):
        return [spelled(part) for part in leaf]
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return leaf
    return {"_target_": _place(leaf if hasattr(leaf, "__qualname__") else type(leaf))}


def _place(thing: Any) -> str:
    """Where a class or function is imported from: its package, where that gives it out."""
    module, name = str(thing.__module__), str(thing.__qualname__)
    package = module.rpartition(".")[0]
    if package and getattr(import_module(package), name, None) is thing:
        module = package
    return f"{module}.{name}"


def length_of(cfg: DictConfig) -> Length:
    """The run's length, once the keys that belong to no group have been checked."""
    check_complete(cfg)
    present = flat(plain_config(cfg), without=())
    for key in ("workers", "log_every"):
        check_whole(key, cfg[key])
    check_whole("seed", cfg.seed, 0, MAX_SEED)
    for key, value in cfg.seeds.items():
        check_whole(f"seeds.{key}", value, 0, MAX_SEED)
    check_number("eval_every", cfg.eval_every, 1e-6, 1e12)
    network = OmegaConf.select(cfg, "task.model._target_")
    for inside, source in OWN_LINKS.items():
        if inside.startswith("task.model.") and network != "dcasgd_repro.models.ResNet":
            continue  # another network's keys are its own
        value, meant = OmegaConf.select(cfg, inside), OmegaConf.select(cfg, source)
        if inside in present and value != meant:
            raise BadInput(inside, value, f"set {source}={value} instead, which all parts read")
    check_choice("augment", cfg.augment, (True, False))
    if (validation := cfg.get("validation")) is not None:  # absent from configs that are older
        check_whole("validation", validation)
        if "task.data.validation" not in present:
            remedy = f"task {task_name(plain_config(cfg))} keeps no images for it; leave it out"
            raise BadInput("validation", validation, remedy)
    steps = cfg.task.get("local_steps")  # absent from older configs
    if steps is not None:
        check_whole("task.local_steps", steps)
    return Length(cfg.images, cfg.batch, cfg.epochs, steps or 1)


def check_complete(cfg: DictConfig) -> None:
    """Refuses a config with a part or a key left open, or one filled in from nowhere."""
    for part in PARTS:
        if not OmegaConf.is_dict(cfg.get(part)):
            raise BadInput(part, cfg.get(part), "this is a group of keys; set one inside it")
        if part in LEAVES and "_target_" not in cfg[part]:
            raise BadInput(part, cfg[part], f"no {part} is chosen; leave out what empties it")
    raw = flat(plain_config(cfg, resolve=False), without=())
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
    for key in SINGLE:
        if key not in cfg:
            raise BadInput(key, None, "the config lacks this key")
        if OmegaConf.is_config(cfg[key]):
            raise BadInput(key, cfg[key], "give one value")


def plain_list(value: Any) -> Any:
    """A config's list as one of Python; () for null, and anything else as it is."""
    if value is None:
        return ()
    return OmegaConf.to_container(value) if OmegaConf.is_list(value) else value


def plain_config(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """What a config says, in plain containers; without ``resolve`` with its interpolations.

    Resolved, it has ``sources`` too, see ``with_sources``, and of a recorded run in ``schedule``
    the numbers that were fitted to it: they tell this run from others, wherever that one lies.
    """
    content = OmegaConf.to_container(cfg, resolve=resolve)
    config = (
        {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    )
    if not resolve:
        return config
    schedule = config.get("schedule")
    if isinstance(schedule, dict) and schedule.get("_target_") == _place(FromRun):
        config["schedule"] = spelled(build(cfg, "schedule"))
    return with_sources(config)


def with_sources(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is said, and the hashes of the files of parts of one's own, as they are now."""
    rest = {key: value for key, value in config.items() if key != "sources"}
    own = sources(rest)
    return {**rest, "sources": own} if own else rest


def build(cfg: DictConfig, group: str) -> Any:
    """The object a group of the config describes; a refusal names the key as the user types it.

    A task's is without its local steps, which ``task_of`` adds.
    """
    try:
        whole = cfg.copy()
        OmegaConf.set_struct(whole, False)
        for key in LOCAL if group == "task" else ():
            whole.task.pop(key, None)
        return instantiate(whole[group])
    except InstantiationException as error:
        at = re.search(r"full_key: (\S+)", str(error))
        where, cause = (at.group(1) if at else group), error.__cause__
        if isinstance(cause, BadInput):
            raise named(cfg, where, cause) from None
        if extra := re.search(r"unexpected keyword argument '(\w+)'", str(cause)):
            key = f"{where}.{extra.group(1)}"
            target = OmegaConf.select(cfg, where)._target_.rsplit(".", 1)[-1]
            raise BadInput(key, OmegaConf.select(cfg, key), f"{target} has no such key") from None
        if isinstance(cause, TypeError) and "abstract class" in str(cause):
            target = OmegaConf.select(cfg, where)._target_
            lacks = " and ".join(sorted(get_object(target).__abstractmethods__))
            name = ":".join(target.rpartition(".")[::2])
            raise BadInput(where, name, f"the class lacks {lacks}; write it") from None
        said = in_words(cause) if isinstance(cause, Exception) else str(error)
        raise BadInput(where, OmegaConf.select(cfg, where), said) from None


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
