"""From words to a config: Hydra over conf/, with folders and classes of one's own. No torch.

``rule=my_rule:MyRule``, or ``rule._target_=my_rule.MyRule``, chooses a class of one's own where a
file of conf/ would stand. Its part of the config holds the class's own defaults and nothing else.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Sequence
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

# The groups that a class can be chosen in, and where their part of the config lies.
PLACES = {group: group for group in ("rule", "schedule", "task", "lr", "engine")}
PLACES |= {"model": "task.model"}
GROUPS = (*PLACES, "scale", "exp")
CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
IN_FILE = re.compile(r"([\w./-]+)\.py:(\w+)")  # what a class is not written as
SIZES = ("depth", "width", "norm")  # what the key ``model`` itself holds: see conf/config.yaml

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
    open_groups, own_model = set(), False
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
        if group in ("rule", "model") and inside == "_target_" and re.fullmatch(r"[\w.,]+", value):
            names = [":".join(name.rpartition(".")[::2]) for name in value.split(",")]
            found = [w for w in found if not w.startswith(f"{group}=")]  # it takes that one's place
            key, word = group, f"{group}={','.join(names)}"
        if key in PLACES:
            classes = [name for name in word.partition("=")[2].split(",") if CLASS.fullmatch(name)]
            open_groups |= {key for name in classes if offer(key, name)}
            own_model |= key == "model" and bool(classes)
        found.append(word)
    return [_placed(word, open_groups, own_model) for word in found]


def _placed(word: str, open_groups: set[str], own_model: bool) -> str:
    """The word with a key of the network, and one that a class takes as **kwargs, in its place."""
    group, dot, inside = word.partition("=")[0].partition(".")
    if not dot or group not in PLACES or (group != "model" and group not in open_groups):
        return word
    if group == "model" and inside in SIZES and not own_model:
        return word
    sign = "++" if group in open_groups else ""
    return f"{sign}{PLACES[group]}{word.removeprefix(group)}"


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
    name = task_name({"task": OmegaConf.to_container(cfg.task, resolve=False)})
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        part = key.split(".")[0]
        if key == "model":
            reads = "model" in inspect.signature(get_object(cfg.task._target_)).parameters
        else:
            reads = f"${{{part}" in task
        if part in ("model", "augment", "data", "test_images", "validation") and not reads:
            what = key if part == "model" else part
            raise BadInput(key, value, f"task {name} reads no {what}; leave it out")


def offer(group: str, name: str) -> bool:
    """Puts ``module:Class`` among the files of a group; whether it takes any keyword. BadInput.

    Its parameters are the keys, with their defaults where a config can hold them. One that means a
    key of the config, as ``batch``, is filled in from there; for a network only where it has no
    default, since a scale is about other networks.
    """
    made, place = imported(group, name), PLACES[group]
    params: dict[str, inspect.Parameter] = {}
    node: dict[str, Any] = {"_target_": name.replace(":", ".")}
    with contextlib.suppress(ValueError):  # a builtin says nothing of its parameters
        params = dict(inspect.signature(made).parameters)
    for key, parameter in params.items():
        default, link = parameter.default, OWN_LINKS.get(f"{place}.{key}")
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
    ConfigStore.instance().store(name=name, node=node, group=group, package=place)
    return any(p.kind == p.VAR_KEYWORD for p in params.values())


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
