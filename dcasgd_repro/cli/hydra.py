"""Hydra behind the door: composing a config from arguments, and its refusals in plain words."""

from __future__ import annotations

import atexit
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dcasgd_repro.cli.help import CONF, choices, fail, groups
from dcasgd_repro.errors import BadInput, Failure

if TYPE_CHECKING:
    from omegaconf import DictConfig

OPTIONS = {"-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info"}
OPTIONS |= {"-cd", "--config-dir"}


class Done(NamedTuple):
    """What came of one point of a sweep, or of the one command."""

    code: int  # exit code
    words: str  # a few, for the table that closes a sweep


Job = Callable[["DictConfig", Sequence[str]], Done]


def with_hydra(job: Job, command: str, arguments: list[str]) -> int:
    """Composes the config from ``arguments`` and runs ``job`` on it, once per point of a sweep.

    Returns the worst exit code. A point that is refused is told, and the sweep goes on. A sweep has
    a heading for each point, and closes with a table.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    import hydra
    import hydra.core.hydra_config
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for a in arguments:
        if a.startswith("-") and a.partition("=")[0] not in OPTIONS:
            return fail(
                f"{a}: no such option; `dcasgd-repro {command} --help` lists what there is", 2
            )
    argv = ["dcasgd-repro", command, *arguments]
    outcomes, sweep = Outcomes(), bool({"-m", "--multirun"} & set(arguments))
    known = all_keys(arguments) if any(a[:1] == "+" and a[:5] != "+exp=" for a in arguments) else []

    def once(cfg: DictConfig) -> None:
        given = hydra.core.hydra_config.HydraConfig.get().overrides.task
        words = OmegaConf.to_container(given, resolve=False)
        assert isinstance(words, list)
        point = " ".join(map(str, words))
        outcomes.append(point, Done(0, ""))  # composed
        if sweep:
            print(f"\n== {point}", flush=True)
        from dcasgd_repro.run.plan import check_complete

        try:
            check_complete(cfg)
            refuse_unread(cfg, arguments, known)
            outcomes.append(point, job(cfg, argv))
        except BadInput as error:
            outcomes.append(point, Done(fail(str(error), 2), f"refused: {error}"))
        except Failure as error:
            outcomes.append(point, Done(fail(str(error), 4), f"failed: {error}"))
        except BrokenPipeError:
            raise
        except OSError as error:
            line = f"{error.filename}: {error.strerror}"
            outcomes.append(point, Done(fail(line, 4), f"failed: {line}"))

    # Options first: argparse, behind Hydra, takes the overrides only in one piece.
    overrides = [a for a in arguments if a[:1] != "-" and ("=" in a or a[:1] == "~")]
    options = [a for a in arguments if a not in overrides]
    sys.argv = ["dcasgd-repro", *options, *default_scale(command, arguments), *overrides]
    run = hydra.main("pkg://dcasgd_repro.conf", "config", version_base="1.3")(once)
    try:
        run()
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        if outcomes.read():  # not about the arguments: a fault of ours, to be seen whole
            raise
        return fail(in_plain_words(error, arguments), 2)
    if sweep:
        print(f"\n{outcomes.table()}", flush=True)
    return max((done.code for _, done in outcomes.read()), default=0)


class Outcomes:
    """What came of a sweep's points, in a file: a launcher runs them in processes of its own."""

    def __init__(self) -> None:
        handle, self.path = tempfile.mkstemp(prefix="dcasgd-repro-")
        os.close(handle)
        atexit.register(Path(self.path).unlink, missing_ok=True)

    def append(self, point: str, done: Done) -> None:
        if Path(self.path).exists():  # on another machine it does not
            with open(self.path, "a") as file:
                file.write(json.dumps([point, *done]) + "\n")

    def read(self) -> list[tuple[str, Done]]:
        lines = map(json.loads, Path(self.path).read_text().splitlines())
        return [(point, Done(*done)) for point, *done in lines]

    def table(self) -> str:
        """A line for each point: what is its own of the overrides, and what came of it."""
        last = dict(self.read())
        words = [set(point.split(" ")) for point in last]
        shared = set.intersection(*words) if len(words) > 1 else set()
        rows = {
            " ".join(word for word in point.split(" ") if word not in shared): done
            for point, done in last.items()
        }
        width = max(map(len, rows), default=0)
        return "\n".join(f"{point:{width}}  {done.words}" for point, done in rows.items())


def in_plain_words(error: Exception, arguments: Sequence[str]) -> str:
    """What Hydra refused, as key=value: remedy.

    By the fields of its exceptions; by its prose only where there is no field.
    """
    import difflib
    import re

    from hydra.errors import MissingConfigException, OverrideParseException

    text = " ".join(str(error).split())
    given = {a.lstrip("+~").partition("=")[0]: a.partition("=")[2] for a in arguments}
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return no_such(group, name, error.options or choices(group), arguments)
    if isinstance(error, OverrideParseException):
        odd = error.override
        for group in groups():  # an empty name, say
            if odd.partition("=")[0] == group:
                return no_such(group, odd.partition("=")[2], choices(group), arguments)
        return f"{odd}: not understood; write KEY=VALUE, odd text in quotes"
    if "override must be a string" in text or isinstance(error, TypeError):
        also = config_dirs(arguments)
        for group in groups():
            if group in given and given[group] not in choices(group, also):
                return no_such(group, given[group], choices(group, also), arguments)
    if "nterpolation" in text:
        for key, value in given.items():
            if "${" in value:
                return f"{key}={value}: this interpolation leads nowhere; give a value"
    if taken := re.search(r"already at '([\w.]+)'", text):
        return f"{taken.group(1)}={given.get(taken.group(1), '')}: this key exists; leave out the +"
    if "exp" in given and "+exp" not in " ".join(arguments):
        return f"exp={given['exp']}: an experiment is added: write +exp={given['exp']}"
    if unknown := re.search(r"Could not (?:override|delete) '([\w.]+)'", text):
        key = unknown.group(1)
        near = difflib.get_close_matches(key, all_keys(arguments), n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        remedy = f"no such key; {meant}`dcasgd-repro train --cfg job` prints them all"
        return f"{key}={given.get(key, '')}: {remedy}"
    return text


def no_such(group: str, name: str, there: Sequence[str], arguments: Sequence[str]) -> str:
    """That a group has no such file, with those it has, and how a key inside it is set."""
    inside = sorted(k for k in all_keys(()) if k.startswith(f"{group}.") and "_target_" not in k)
    keys = f"; a key inside it is set as {inside[0]}=VALUE" if inside else ""
    return f"{group}={name}: no such {group}, choose {', '.join(there)}{keys}"


def all_keys(arguments: Sequence[str]) -> list[str]:
    """Every key of the config that the arguments' groups compose, as it is typed."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    def walk(node: object, at: str) -> list[str]:
        if not isinstance(node, dict):
            return [at]
        return [leaf for key, value in node.items() for leaf in walk(value, f"{at}.{key}")]

    chosen = [a for a in arguments if a.partition("=")[0] in (*groups(), "+exp")]
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        for words in (chosen, []):
            scale = [] if any(word.startswith("scale=") for word in words) else ["scale=laptop"]
            try:
                content = OmegaConf.to_container(compose("config", overrides=[*scale, *words]))
            except (HydraException, ValueError, TypeError):
                continue  # a choice that is itself refused, or of a folder given with -cd
            return [key[1:] for key in walk(content, "")]
    return []


def config_dirs(arguments: Sequence[str]) -> list[Path]:
    """The folders given with -cd or --config-dir."""
    found = []
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option in ("-cd", "--config-dir"):
            found.append(Path(value or after))
    return found


def default_scale(command: str, arguments: Sequence[str]) -> list[str]:
    """The scale to add where none is given; see the help."""
    if any(a.startswith("scale=") for a in arguments):
        return []
    tasks = chosen_tasks(arguments)
    if "imagenet" in tasks and len(tasks) > 1:
        raise BadInput("scale", None, f"choose one; {', '.join(sorted(tasks))} have no common one")
    if tasks != {"cifar10"}:
        return ["scale=imagenet" if tasks == {"imagenet"} else "scale=smoke"]
    if command == "schedule":  # answers without torch, and a longer log begins like a shorter one
        return ["scale=paper"]
    import torch

    return ["scale=paper" if torch.cuda.is_available() else "scale=laptop"]


def chosen_tasks(arguments: Sequence[str]) -> set[str]:
    """The tasks that a command runs: those it names, else its experiments', else the default."""
    import yaml

    if named := [a.partition("=")[2] for a in arguments if a.startswith("task=")]:
        return set(named[-1].split(","))
    tasks = set()
    for name in (n for a in arguments if a.startswith("+exp=") for n in a[5:].split(",")):
        files = [place / "exp" / f"{name}.yaml" for place in (CONF, *config_dirs(arguments))]
        task = "cifar10"
        for file in filter(Path.is_file, files):
            try:
                content = yaml.safe_load(file.read_text()) or {}
                defaults = [d for d in content.get("defaults", ()) if isinstance(d, dict)]
            except (yaml.YAMLError, AttributeError, TypeError):
                continue  # Hydra will say what is wrong with it
            task = next((d["override /task"] for d in defaults if "override /task" in d), task)
        tasks.add(str(task))
    return tasks or {"cifar10"}


def refuse_unread(cfg: DictConfig, arguments: list[str], known: list[str]) -> None:
    """Refuses an added key that nothing reads, and one for a part that this task does not read."""
    from omegaconf import OmegaConf

    from dcasgd_repro.run.identity import task_name

    added = [a.lstrip("+") for a in arguments if a.startswith("+") and not a.startswith("+exp=")]
    for key, _, value in (a.partition("=") for a in added):
        if key.split(".")[0] not in groups() and key not in known:
            raise BadInput(key, value, "no such key, and none can be added here")
    task = OmegaConf.to_yaml(cfg.task, resolve=False)
    name = task_name({"task": OmegaConf.to_container(cfg.task, resolve=False)})
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        part = key.split(".")[0]
        if (
            part in ("model", "augment", "data", "test_images", "validation")
            and f"${{{part}" not in task
        ):
            raise BadInput(key, value, f"task {name} reads no {part}; leave it out")
