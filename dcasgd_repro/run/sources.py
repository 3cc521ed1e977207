"""The files that a run's own parts are written in: an edited part makes another run. No torch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

OURS = "dcasgd_repro"
INSTALLED = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}  # bases that count no file


def sources(config: Mapping[str, Any]) -> dict[str, str]:
    """What tells the file of each part that is not of this package: {where it is said: hash}.

    A class's file is that of its definition, joined by those of its own base classes. What such a
    file imports does not count, and a class typed at a prompt has no file. A hash is the first 16
    digits of the sha256.
    """
    found = {}
    for where, target in _targets(config, ""):
        files = dict.fromkeys(_files(target))
        if files:
            digest = hashlib.sha256(b"".join(file.read_bytes() for file in files))
            found[where.replace(".", "_")] = digest.hexdigest()[:16]
    return found


def _targets(node: Any, at: str) -> Iterator[tuple[str, str]]:
    """Every ``_target_`` that is not of this package, and its place."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return
    target = node.get("_target_")
    if isinstance(target, str) and target.partition(".")[0] != OURS:
        yield at, target
    for key, inside in node.items():
        yield from _targets(inside, f"{at}.{key}" if at else str(key))


def _files(target: str) -> Iterator[Path]:
    """Files that define what ``target`` names; none where it cannot be imported."""
    found = _found(target)
    bases = [base for base in getattr(found, "__mro__", ())[1:] if _own(base.__module__)]
    for thing in (found, *bases):
        module = sys.modules.get(getattr(thing, "__module__", None) or "")
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).is_file():
            yield Path(file)


def _own(module: str) -> bool:
    return module.partition(".")[0] not in {OURS, *INSTALLED}


def _found(target: str) -> Any:
    """What a dotted name names, as far as it can be followed; None where nothing imports."""
    names = target.split(".")
    for k in range(len(names) - 1, 0, -1):
        try:
            thing: Any = import_module(".".join(names[:k]))
        except Exception:  # a user's module may fail in any way; building the part will say how
            continue
        for name in names[k:]:
            thing = getattr(thing, name, None) or thing
        return thing
    return None
