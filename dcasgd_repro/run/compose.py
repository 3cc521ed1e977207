"""From words to a config: Hydra over conf/, with folders and classes of one's own. No torch.

``rule=my_rule:MyRule``, or ``rule._target_=my_rule.MyRule``, chooses a class of one's own where a
file of conf/ would stand. Its part of the config holds the class's own defaults and nothing else.
What gives images, as ``data=my_data:Blobs``, gets an ``InMemory`` around it, and a law of times, as
``schedule=my_law:Law``, workers that it is the ``compute`` of.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from dcasgd_repro.errors import BadInput, in_words
from dcasgd_repro.run.identity import flat, task_name
from dcasgd_repro.schedule import Generated, Law

# The groups that a class can be chosen in, and where their part of the config lies.
PLACES = {group: group for group in ("rule", "schedule", "task", "lr", "engine")}
PLACES |= {"model": "task.model", "data": "task.data"}
GROUPS = (*PLACES, "scale", "exp")
IMAGES, TIMES = "task.data.make", "schedule.compute"  # the places of what gives images, and times
CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
IN_FILE = re.compile(r"([\w./-]+)\.py:(\w+)")  # what a class is not written as
# What the keys ``model`` and ``data`` themselves hold, see conf/config.yaml, for parts of ours.
HELD = {"model": ("depth", "width", "norm"), "data": ("root",)}

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
# The same for a class of one's own, as no task of ours has them beside its data.
OWN_LINKS = {**LINKS, "task.batch": "batch", "task.workers": "workers"}


def composed(words: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """The config that ``words`` describe; ``folders`` are searched after conf/.

    Raises Hydra's exceptions, and BadInput for a class of one's own that cannot be had.
    """
    paths = ",".join("'file://" + str(folder).replace("'", r"\'") + "'" for folder in folders)
    search = [f"hydra.searchpath=[{paths}]"] if folders else []
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        return compose("config", overrides=[*search, *hydra_words(words)])


def own_folders(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The arguments without ``-cd DIR`` or ``--config-dir DIR``, and that folder. BadInput.

    As in Hydra, the last one counts.
    """
    rest, folders, words = [], [], iter(arguments)
    for word in words:
        option, _, value = word.partition("=")
        if option not in ("-cd", "--config-dir"):
            rest.append(word)
            continue
        value = value or next(words, "")
        if not value or not Path(value).is_dir():
            raise BadInput(option, value, "name a folder, one with exp/ or rule/ in it")
        folders = [Path(value).absolute()]
    return rest, folders


def hydra_words(words: Sequence[str]) -> list[str]:
    """The words as Hydra takes them, the classes in them made known to it. Raises BadInput."""
    found: list[str] = []
    open_groups: set[str] = set()
    own: dict[str, str] = {}  # a group in which a class is chosen: where its keys lie
    for word in words:
        key, _, value = word.partition("=")
        group, _, inside = key.partition(".")
        if key in GROUPS and value.startswith("["):
            raise BadInput(key, value, "choose one; a file of your own can build on several")
        if key in PLACES and (file := IN_FILE.fullmatch(value)):
            folder, _, module = file[1].rpartition("/")
            there = f", and stand in {folder}" if folder else ""
            remedy = f"give the module, not its file: {key}={module}:{file[2]}{there}"
            raise BadInput(key, value, remedy)
        own_target = group in ("rule", *HELD) and inside == "_target_"
        if own_target and re.fullmatch(r"[\w.,]+", value):
            names = [":".join(name.rpartition(".")[::2]) for name in value.split(",")]
            found = [w for w in found if not w.startswith(f"{group}=")]  # it takes that one's place
            key, word = group, f"{group}={','.join(names)}"
        if key in PLACES:
            classes = [name for name in word.partition("=")[2].split(",") if CLASS.fullmatch(name)]
            for name in classes:
                own[key], takes_any = offer(key, name)
                open_groups |= {key} if takes_any else set()
        found.append(word)
    return [_placed(word, open_groups, own) for word in found]


def _placed(word: str, open_groups: set[str], own: Mapping[str, str]) -> str:
    """The word with a key of network or data, and one that a class takes as **kwargs, in place."""
    group, dot, inside = word.partition("=")[0].partition(".")
    if not dot or group not in PLACES or (group not in HELD and group not in open_groups):
        return word
    if inside in HELD.get(group, ()) and group not in own:
        return word
    sign = "++" if group in open_groups else ""
    return f"{sign}{own.get(group, PLACES[group])}{word.removeprefix(group)}"


def all_keys(words: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """Every key of the config that the words' groups compose, as it is typed."""
    chosen = [word for word in words if word.lstrip("+").partition("=")[0] in GROUPS]
    for given in (chosen, []):
        scale = [] if any(word.startswith("scale=") for word in given) else ["scale=laptop"]
        try:
            content: Any = OmegaConf.to_container(composed([*scale, *given], folders))
        except (HydraException, ValueError, TypeError):
            continue  # a choice that is itself refused
        return list(flat(content, without=()))
    return []


def added(words: Sequence[str]) -> list[str]:
    """What the words add to the config, without its +; an experiment aside."""
    return [word.lstrip("+") for word in words if word[:1] == "+" and word[:5] != "+exp="]


def refuse_unread(cfg: DictConfig, words: Sequence[str], known: Sequence[str]) -> None:
    """Refuses a key that is added beside those ``known``, and one of a part that no task reads."""
    for key, _, value in (word.partition("=") for word in added(words)):
        if key.split(".")[0] not in GROUPS and key not in known:
            raise BadInput(key, value, "no such key, and none can be added here")
    task = OmegaConf.to_yaml(cfg.task, resolve=False)
    parts = inspect.signature(get_object(cfg.task._target_)).parameters
    node: Any = OmegaConf.to_container(cfg.task, resolve=False)
    name = task_name({"task": node if "data" in parts else {**node, "data": None}})
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        part = key.split(".")[0]
        reads = key in parts if key in HELD else f"${{{part}" in task
        if part in ("model", "augment", "data", "test_images", "validation") and not reads:
            what = key if part == "model" else part
            raise BadInput(key, value, f"task {name} reads no {what}; leave it out")


def offer(group: str, name: str) -> tuple[str, bool]:
    """Puts ``module:Class`` among the files of a group. Raises BadInput.

    Returns where its keys lie in the config, and whether it takes any keyword. Its parameters are
    the keys, with their defaults where a config can hold them. One that means a key of the config,
    as ``batch``, is filled in from there; for a network only where it has no default, since a scale
    is about other networks.
    """
    made = imported(group, name)
    inside = _place(group, made)
    params: dict[str, inspect.Parameter] = {}
    node: dict[str, Any] = {"_target_": name.replace(":", ".")}
    with contextlib.suppress(ValueError):  # a builtin says nothing of its parameters
        params = dict(inspect.signature(made).parameters)
    for key, parameter in params.items():
        default, link = parameter.default, OWN_LINKS.get(f"{inside}.{key}")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if link and (default is parameter.empty or group != "model"):
            node[key] = f"${{{link}}}"
        elif default is parameter.empty:
            node[key] = "???"
        elif default is None or isinstance(default, bool | int | float | str):
            node[key] = default
    if group == "task":  # what any task can have, see plan.task_of
        node |= {"local_steps": None, "local_lr": None}
    if group == "model" and not hasattr(made, "build"):
        node["_partial_"] = True  # see models.Network
    if inside == IMAGES:
        node = _in_memory(node, called=not inspect.isclass(made))
    if inside == TIMES:
        node = _workers(node)
    ConfigStore.instance().store(name=name, node=node, group=group, package=PLACES[group])
    takes_any = any(p.kind == p.VAR_KEYWORD for p in params.values())
    return inside, takes_any and inside != TIMES  # of which keys are typed in full


def _place(group: str, made: Any) -> str:
    """Where the keys of a class of one's own lie: in its group's part, or deeper."""
    if group == "data" and not hasattr(made, "load"):
        return IMAGES
    if group == "schedule" and inspect.isclass(made) and issubclass(made, Law):
        return TIMES
    return PLACES[group]


def _in_memory(make: Mapping[str, Any], called: bool) -> dict[str, Any]:
    """The config of the data set that ``make`` gives the images of; ``called`` with its keys."""
    node: dict[str, Any] = {"make": {**make, "_partial_": True} if called else make}
    for key, link in LINKS.items():
        if key.startswith("task.data.") and key != "task.data.root":
            node[key.removeprefix("task.data.")] = f"${{{link}}}"
    return {"_target_": "dcasgd_repro.data.memory.InMemory", **node}


def _workers(law: Mapping[str, Any]) -> dict[str, Any]:
    """The config of ``Generated`` workers with all its keys, ``law`` that of their computing."""
    node: dict[str, Any] = {"_target_": "dcasgd_repro.schedule.Generated"}
    for key, parameter in inspect.signature(Generated).parameters.items():
        link = LINKS.get(f"schedule.{key}")
        node[key] = f"${{{link}}}" if link else parameter.default
    none = {"_target_": "dcasgd_repro.schedule.Constant", "mean_s": 0.0}
    mean_s = {"mean_s": 1.0} if law.get("mean_s") == "???" else {}  # as in conf/schedule
    return node | {"compute": {**law, **mean_s}, "communication": none}


def imported(group: str, name: str) -> Any:
    """The class or function ``module:Class``. Raises BadInput, with the line where it fails."""
    module, _, attribute = name.partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise BadInput(group, name, in_words(error)) from None
        remedy = f"there is no module {error.name}, in the current folder either"
        raise BadInput(group, name, remedy) from None
    except Exception as error:  # whatever a file of theirs does as it is imported
        raise BadInput(group, name, in_words(error)) from None
    if not callable(made := getattr(found, attribute, None)):
        own = [key for key, value in vars(found).items()
               if inspect.isclass(value) and value.__module__ == module]  # fmt: skip
        there = f"; it has {', '.join(own)}" if own else ""
        where = getattr(found, "__file__", None) or module
        raise BadInput(group, name, f"{where} has no class {attribute}{there}")
    return made
