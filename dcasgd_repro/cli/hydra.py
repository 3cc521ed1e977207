"""Hydra behind the door: composing a config from arguments, and its refusals in plain words."""

from __future__ import annotations

import atexit
import contextlib
import io
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dcasgd_repro.cli.help import fail, unread
from dcasgd_repro.errors import BadInput, Failure
from dcasgd_repro.run.compose import (
    CLASS,
    added,
    all_keys,
    composed,
    hydra_words,
    own_folders,
    refuse_unread,
)
from dcasgd_repro.run.groups import choices
from dcasgd_repro.run.refusals import in_plain_words

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Of Hydra's options; the last two are taken out before Hydra is asked.
OPTIONS = ["-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info"]
OPTIONS += ["-cd", "--config-dir"]
NAMED = ("exp", "scale", "rule", "workers", "seed")  # what a run's name tells anyway
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


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

    typed, folders = own_folders(arguments)
    for a in typed:
        if a.startswith("-") and a.partition("=")[0] not in OPTIONS:
            there = f"of Hydra's there are {', '.join(OPTIONS)}"
            return fail(f"{a}: no such option; {there}; `dcasgd-repro {command} --help`", 2)
        if a.startswith("hydra.verbose=") and a != "hydra.verbose=false":
            remedy = "nothing here writes a log; --info all and --cfg job say what is composed"
            return fail(f"{a}: {remedy}", 2)
        if CLASS.fullmatch(a) or a in choices("rule", folders):
            return fail(f"{a}: write rule={a}", 2)
    argv = ["dcasgd-repro", command, *arguments]
    arguments = hydra_words(typed)
    outcomes, sweep = Outcomes(), bool({"-m", "--multirun"} & set(arguments))
    known = all_keys(arguments, folders) if added(arguments) else []

    def once(cfg: DictConfig) -> None:
        given = hydra.core.hydra_config.HydraConfig.get().overrides.task
        words = OmegaConf.to_container(given, resolve=False)
        assert isinstance(words, list)
        point = " ".join(map(str, words)).replace(r"\:", ":")  # a sweep escapes it
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
            sys.exit(unread())  # an exception has Hydra write a line
        except OSError as error:
            line = f"{error.filename}: {error.strerror}"
            outcomes.append(point, Done(fail(line, 4), f"failed: {line}"))

    # Options first: argparse, behind Hydra, takes the overrides only in one piece.
    overrides = [a for a in arguments if a[:1] != "-" and ("=" in a or a[:1] == "~")]
    options = [a for a in arguments if a not in overrides]
    for k, option in enumerate(options):
        if option in ("-i", "--info") and not set(options[k + 1 : k + 2]) & set(INFO):
            options[k] = "--info=all"  # else argparse takes the override after it for its value
    if line := refused_options(options):
        return fail(f"{line}; `dcasgd-repro {command} --help` says more", 2)
    options += [word for folder in folders for word in ("-cd", str(folder))]
    scale = default_scale(command, arguments, folders)
    sys.argv = ["dcasgd-repro", *options, *scale, *overrides]
    run = hydra.main("pkg://dcasgd_repro.conf", "config", version_base="1.3")(once)
    try:
        run()
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        if outcomes.read():  # not about the arguments: a fault of ours, to be seen whole
            raise
        return fail(str(in_plain_words(error, arguments, folders)), 2)
    if sweep:
        print(f"\n{outcomes.table()}", flush=True)
    return max((done.code for _, done in outcomes.read()), default=0)


def typed(cfg: DictConfig) -> tuple[str, dict[str, Any]]:
    """The schedule's name, and the keys that were typed beside those every run's name has.

    Means, places and labels are left out.
    """
    import hydra.core.hydra_config
    from omegaconf import OmegaConf

    from dcasgd_repro.run.identity import LEFT_OUT, MEANS

    made = hydra.core.hydra_config.HydraConfig.get()
    found: dict[str, Any] = {}
    for word in made.overrides.task:
        key, _, value = word.lstrip("+~").partition("=")
        inside = [key.startswith(f"{part}.") for part in (*LEFT_OUT, *MEANS)]
        if key in (*NAMED, *LEFT_OUT, *MEANS) or any(inside):
            continue
        given = OmegaConf.select(cfg, key, default=value)
        scalar = isinstance(given, bool | int | float | str)
        found[key] = given if scalar else value  # as typed: a group's file, a list
    return str(made.runtime.choices["schedule"]), found


def refused_options(options: list[str]) -> str:
    """What Hydra's parser says against the options, without its usage; "" if nothing."""
    from hydra._internal.utils import get_args_parser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            get_args_parser().parse_args(options)
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
    return ""


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


def default_scale(
    command: str, arguments: Sequence[str], folders: Sequence[Path] = ()
) -> list[str]:
    """The scale to add where none is given, by the command or by its experiments; see the help."""
    if any(a.startswith("scale=") for a in arguments):
        return []
    found = {scale_of(words, folders) for words in chosen(arguments)}
    if found == {None}:
        return []
    if len(found) > 1 and found & {None, "imagenet"}:
        names = ", ".join(sorted(name or "an experiment's own" for name in found))
        raise BadInput("scale", None, f"choose one; {names} have no common one")
    if found != {"cifar10"}:
        return ["scale=imagenet" if found == {"imagenet"} else "scale=smoke"]
    if command == "schedule":  # answers without torch, and a longer log begins like a shorter one
        return ["scale=paper"]
    import torch

    return ["scale=paper" if torch.cuda.is_available() else "scale=laptop"]


def chosen(arguments: Sequence[str]) -> list[list[str]]:
    """The experiments, tasks and data of a command: a list of words for each point of a sweep."""
    last = {a.partition("=")[0]: a for a in arguments if a.startswith(("+exp=", "task=", "data="))}
    each = [[f"{key}={name}" for name in last[key].partition("=")[2].split(",")]
            for key in ("+exp", "task", "data") if key in last]  # fmt: skip
    return [list(words) for words in itertools.product(*each)]


def scale_of(words: Sequence[str], folders: Sequence[Path]) -> str | None:
    """cifar10, imagenet or smoke, for a run of such a task; None if its experiment says a scale."""
    from hydra.errors import HydraException

    from dcasgd_repro.run.identity import task_name
    from dcasgd_repro.run.plan import plain_config

    for scale in ([], ["scale=smoke"]) if words else ():
        try:
            config = plain_config(composed([*scale, *words], folders), resolve=False)
            name, network = task_name(config), config["task"].get("model") or {}
        except (HydraException, ValueError, TypeError, KeyError, AttributeError):
            continue  # no scale is chosen, or what Hydra will refuse again
        if not scale:
            return None
        whole = name == "imagefolder" and network.get("classes") == 1000
        return "cifar10" if name == "cifar10" else "imagenet" if whole else "smoke"
    return "cifar10"
