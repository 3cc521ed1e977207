"""What Hydra refuses, in plain words: key, value and remedy. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException

from dcasgd_repro.errors import BadInput
from dcasgd_repro.run.compose import all_keys
from dcasgd_repro.run.groups import choices, groups

# Hydra's launchers that an extra of ours installs.
LAUNCHERS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm"}
OWN = {"schedule": "my_law:MyLaw"}
OWN |= {group: f"my_{group}:MyClass" for group in ("rule", "model", "data", "task")}
SYMBOLS = {"M": "workers", "eta": "lr.base"}  # the paper's, and their keys


def in_plain_words(
    error: Exception, arguments: Sequence[str], folders: Sequence[Path] = ()
) -> BadInput:
    """What Hydra refused of ``arguments``, as key, value and remedy.

    By the fields of its exceptions; by its prose only where there is no field.
    """
    text = " ".join(str(error).split())
    given = {a.lstrip("+~").partition("=")[0]: a.partition("=")[2] for a in arguments}
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and name in LAUNCHERS:
            return BadInput(group, name, f"needs pip install 'dcasgd-repro[{LAUNCHERS[name]}]'")
        return no_such(group, name, folders)
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        if key in groups():  # an empty name, say
            return no_such(key, value, folders)
        return BadInput(key, value, "not understood; write KEY=VALUE, odd text in quotes")
    if several := re.search(r"Ambiguous value for argument '([^=]+)=(.*?)' 1\.", text):
        remedy = f"a sweep needs -m; a list is written [{several[2]}]"
        return BadInput(several[1], several[2], remedy)
    if "override must be a string" in text or isinstance(error, TypeError):
        for group in groups():
            if group in given and given[group] not in choices(group, folders):
                return no_such(group, given[group], folders)
    if "nterpolation" in text:
        for key, value in given.items():
            if "${" in value:
                return BadInput(key, value, "this interpolation leads nowhere; give a value")
    if taken := re.search(r"already at '([\w.]+)'", text):
        key = taken.group(1)
        return BadInput(key, given.get(key, ""), "this key exists; leave out the +")
    if "exp" in given and "+exp" not in " ".join(arguments):
        exp = given["exp"]
        return BadInput("exp", exp, f"an experiment is added: write +exp={exp}")
    if unknown := re.search(r"Could not (?:override|delete) '([\w.]+)'", text):
        key = unknown.group(1)
        return no_such_key(as_typed(key), given.get(key, ""), all_keys(arguments, folders))
    return BadInput("arguments", " ".join(arguments), text)


def as_typed(key: str) -> str:
    """A key of the network, or of data of one's own, under the shorter of its two names."""
    if key.startswith("task.data.make."):
        return key.replace("task.data.make.", "data.")
    return key.removeprefix("task.") if key.startswith("task.model.") else key


def no_such_key(key: str, value: str, known: Sequence[str]) -> BadInput:
    """That the config has no such key, with those that are near; of the paper's symbols, theirs."""
    there = {as_typed(k) for k in known if "_target_" not in k}
    near = difflib.get_close_matches(key, sorted(there), n=3, cutoff=0.5)
    near = [SYMBOLS[key]] if key in SYMBOLS else near
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return BadInput(
        key, value, f"no such key; {meant}`dcasgd-repro train --cfg job` prints them all"
    )


def no_such(group: str, name: str, folders: Sequence[Path]) -> BadInput:
    """That a group has no such file, with those it has, and how a key inside it is set."""
    there = choices(group, folders)
    if alike := [n for n in there if n.replace("_", "") == name.lower().replace("_", "")]:
        return BadInput(group, name, f"no such {group}; did you mean {alike[0]}?")
    inside = sorted(k for k in all_keys(()) if k.startswith(f"{group}.") and "_target_" not in k)
    keys = f"; a key inside it is set as {inside[0]}=VALUE" if inside else ""
    yours = OWN.get(group)
    own = f"; a class of yours is chosen as {yours}" if yours else ""
    return BadInput(group, name, f"no such {group}, choose {', '.join(there)}{keys}{own}")
