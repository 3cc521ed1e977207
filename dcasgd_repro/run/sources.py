"""The files that a run's own parts are written in: an edited part makes another run. No torch."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

OURS = "dcasgd_repro"
INSTALLED = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}  # bases that count no file
_met: WeakKeyDictionary[ModuleType, bytes] = WeakKeyDictionary()  # their files, as first met


def sources(config: Mapping[str, Any]) -> dict[str, str]:
    """What tells the file of each part that is not of this package: {where it is said: hash}.

    A class's file is that of its definition, joined by those of the module that it is named in and
    of its own base classes; a ``functools.partial`` has its function's too. What such a file
    imports does not count, and a class typed at a prompt has no file. A file counts as it was when
    this process first met its module: an edit reaches no process that has imported it. A hash is
    the first 16 digits of the sha256.
    """
    found = {}
    for where, target in _targets(config, ""):
        contents = dict.fromkeys(_contents(target))
        if contents:
            digest = hashlib.sha256(b"".join(contents))
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


def _contents(target: str) -> Iterator[bytes]:
    """Files that define what ``target`` names; none where it cannot be imported."""
    module, found = _found(target)
    while isinstance(found, functools.partial):
        found = found.func
    bases = [base for base in getattr(found, "__mro__", ())[1:] if _own(base.__module__)]
    names = [getattr(thing, "__module__", None) or "" for thing in (found, *bases)]
    if module is not None and _own(module):
        names.insert(1, module)
    for name in names:
        if (content := _content(sys.modules.get(name))) is not None:
            yield content


def _content(module: ModuleType | None) -> bytes | None:
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return None
    if module not in _met and Path(file).is_file():
        _met[module] = Path(file).read_bytes()
    return _met.get(module)


def _own(module: str) -> bool:
    return module.partition(".")[0] not in {OURS, *INSTALLED}


def _found(target: str) -> tuple[str | None, Any]:
    """The module that a dotted name is looked up in, and what it names; None where none imports.

    A name is followed as far as it leads.
    """
    names = target.split(".")
    for k in range(len(names) - 1, 0, -1):
        module = ".".join(names[:k])
        try:
            thing: Any = import_module(module)
        except Exception:  # a user's module may fail in any way; building the part will say how
            continue
        for name in names[k:]:
            thing = getattr(thing, name, None) or thing
        return module, thing
    return None, None
