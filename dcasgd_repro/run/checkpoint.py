"""Checkpoints: the whole asynchronous state, written so that a crash leaves the last one good.

A file is one header line (name, format, sha256 of what follows) and a ``torch.save`` archive of
plain containers and tensors, which is read without unpickling code. A vector that several workers
share is stored once, since they share its storage.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dcasgd_repro.errors import BadInput
from dcasgd_repro.simulate import Server

MAGIC, FORMAT = b"dcasgd-checkpoint", 1
NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
HELD = (torch.Tensor, bool, int, float, complex, str, type(None))  # in a rule's state
SERVER = ("w", "t", "pushes", "w_bak", "sent", "sent_at", "batches")


def save(folder: Path, content: Mapping[str, Any]) -> None:
    """Makes ``content`` the folder's newest checkpoint; the one before it becomes the previous.

    Written under a temporary name and flushed to the disk before any name changes, so whenever
    the machine stops, one of the two is whole. Raises OSError.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    body = buffer.getvalue()
    header = b"%s %d %s\n" % (MAGIC, FORMAT, hashlib.sha256(body).hexdigest().encode())
    temporary = folder / (NEWEST + ".tmp")
    write_through(temporary, header + body)
    if (folder / NEWEST).exists():
        os.replace(folder / NEWEST, folder / PREVIOUS)
    os.replace(temporary, folder / NEWEST)
    sync_folder(folder)


def load(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None where there is none.

    Raises BadInput for a newer format, and where every checkpoint there is damaged.
    """
    damaged = None
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        if path.exists():
            try:
                return read(path, device)
            except Damaged as error:
                damaged = error
    if damaged is not None:
        raise BadInput("checkpoint", damaged, "no whole one is left; remove run_dir and start anew")
    return None


class Damaged(Exception):
    """A checkpoint that is not what its header says."""


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """One checkpoint file. Raises Damaged, or BadInput for a newer format."""
    try:
        header, _, body = path.read_bytes().partition(b"\n")
    except IsADirectoryError as error:
        raise Damaged(f"{path} (a directory)") from error
    words = header.split(b" ")
    if len(words) != 3 or words[0] != MAGIC or not words[1].isdigit():
        raise Damaged(f"{path} (no checkpoint)")
    if int(words[1]) > FORMAT:
        remedy = f"its format {int(words[1])} is newer than this program's {FORMAT}; update it"
        raise BadInput("checkpoint", path, remedy)
    if hashlib.sha256(body).hexdigest().encode() != words[2]:
        raise Damaged(f"{path} (sha256 differs)")
    try:
        content: dict[str, Any] = torch.load(
            io.BytesIO(body), map_location=device, weights_only=True
        )
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise Damaged(f"{path} (not an archive of plain data)") from error
    return content


def pack(server: Server) -> dict[str, Any]:
    """The server's state in plain containers."""
    state = {name: getattr(server, name) for name in SERVER}
    return {**state, "rule": plain(server.state)}


def unpack(server: Server, content: Mapping[str, Any]) -> None:
    """Puts a packed state into a fresh server of the same rule and number of workers."""
    for name in SERVER:
        setattr(server, name, content[name])
    server.state = shaped(server.state, content["rule"])


def plain(state: Any) -> Any:
    """A rule's state without its classes: named tuples become tuples.

    Raises BadInput for what would not be read back: an object of another type anywhere in it, and
    a named tuple in a list or dict, which has no place of its own to be known by.
    """
    if isinstance(state, tuple):
        return tuple(plain(part) for part in state)
    inside = state if type(state) is list else state.values() if type(state) is dict else ()
    if any(isinstance(part, tuple) and hasattr(part, "_fields") for part in inside):
        raise _unheld(f"a named tuple in a {type(state).__name__}")
    if type(state) is list:
        return [plain(part) for part in state]
    if type(state) is dict:
        return {plain(key): plain(part) for key, part in state.items()}
    if type(state) not in HELD:
        raise _unheld(f"a {type(state).__module__}.{type(state).__qualname__}")
    return state


def kinds(state: Any) -> Any:
    """A state with each leaf replaced by None: the classes that ``shaped`` asks for."""
    if not isinstance(state, tuple):
        return None
    parts = map(kinds, state)
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def check_held(state: Any, like: Any) -> None:
    """Refuses a rule's state that a checkpoint would not give back, classes included.

    ``like``: the ``kinds`` of the rule's fresh state. Raises BadInput.
    """
    if _classes(shaped(like, plain(state))) != _classes(state):
        raise _unheld("a named tuple where its first state has none, or another one")


def _classes(state: Any) -> Any:
    inside = state.values() if isinstance(state, dict) else state
    if not isinstance(state, tuple | list | dict):
        return None
    return type(state), [_classes(part) for part in inside]


def _unheld(what: str) -> BadInput:
    remedy = "make it of tensors, numbers, strings and None, in tuples, lists and dicts"
    return BadInput("rule", f"a state with {what}", f"no checkpoint can hold it; {remedy}")


def shaped(like: Any, state: Any) -> Any:
    """``state`` with the classes of ``like``, the rule's own fresh state."""
    if not (isinstance(like, tuple) and isinstance(state, tuple) and len(like) == len(state)):
        return state
    parts = [shaped(a, b) for a, b in zip(like, state, strict=True)]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def write_through(path: Path, content: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the folder's names."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
