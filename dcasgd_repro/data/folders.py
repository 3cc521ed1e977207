"""Images in folders, one per class, as ImageNet comes: decoded anew for every mini-batch.

As in ``images``, ``batch(worker, k)`` is a function of (seed, worker, k) and of the files alone.
Other processes decode, and a worker's next mini-batch is begun when its present one is asked for:
that changes when pixels are ready, never which.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dcasgd_repro.data.decode import DRAWS, Decoders, Draws, Job, Pixels
from dcasgd_repro.data.images import (
    Batch,
    Normalise,
    Partitioned,
    batches_per_epoch,
    stream,
    trained_on,
)
from dcasgd_repro.errors import BadInput, check_choice, check_whole

# Of ImageNet's training images as torchvision's models take them, in units of the pixel range.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm")
CHUNK = 100  # images evaluated at a time: 60 MB of float32 at 224 pixels
MIX_SEED = 2017  # of the order in which a folder's images are counted, whatever the run's seed


@dataclass(frozen=True)
class ImageFolder:
    """Images as ``root/train/<class>/*`` and ``root/val/<class>/*``, as torchvision's ImageFolder.

    The classes are the folders' names in sorted order. The images of a split are counted in one
    fixed mixed order, not class by class, so that the first thousand have all kinds.

    Args:
        root: folder that holds ``train`` and ``val``.
        workers: M, over which each epoch is partitioned.
        batch: mini-batch size of one worker.
        seed: of the order and the augmentation.
        augment: a random window (see `decode.window`) and flip of each training image; else, and
            in evaluation, the centre.
        train_images, test_images: use only the first so many; None for all.
        validation: keep the last so many training images out of training, and evaluate on them in
            place of those of ``val``; None for none.
        size: pixels on each side of what the network sees.
        resize: pixels that the shorter side is given before the centre is cut out.
        processes: that decode; None for one per CPU core, 0 to decode in this one. Changes no bit.
    """

    root: str | None
    workers: int
    batch: int
    seed: int
    augment: bool
    train_images: int | None = None
    test_images: int | None = None
    size: int = 224
    resize: int = 256
    processes: int | None = None
    validation: int | None = None

    def __post_init__(self) -> None:
        for key in ("train_images", "test_images", "validation"):
            if getattr(self, key) is not None:
                check_whole(key, getattr(self, key))
        check_whole("size", self.size, 1, 4096)
        check_whole("resize", self.resize, self.size, 8192)
        if self.processes is not None:
            check_whole("processes", self.processes, 0, 256)
        check_choice("augment", self.augment, (True, False))
        if self.train_images is not None:
            batches_per_epoch(self.train_images, self.workers, self.batch, self.seed)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Folders:
        """The data, its files listed but not read. Raises BadInput for folders that do not fit."""
        if self.root is None:
            raise BadInput("root", None, "name the folder that holds train/ and val/")
        root = Path(self.root)
        train, test = Listing.of(root / "train"), Listing.of(root / "val")
        if odd := set(train.classes) ^ set(test.classes):
            name = min(odd)
            has, lacks = ("train", "val") if name in train.classes else ("val", "train")
            raise BadInput("root", root, f"class {name} is in {has} but not in {lacks}; add it")
        md5 = {"train": train.md5, "val": test.md5}
        if self.validation is None:
            trained = train.first("train_images", self.train_images)
            evaluated = test.first("test_images", self.test_images)
        else:
            whole = len(train.files)
            used = trained_on(self.train_images, self.validation, whole)
            trained, evaluated = train[:used], train[whole - self.validation :]
        return Folders(self, trained, evaluated, md5, torch.device(device), dtype)


@dataclass(frozen=True)
class Listing:
    """The image files of a split: ``files[i]`` below ``folder`` is of ``classes[labels[i]]``."""

    folder: Path
    classes: list[str]
    files: list[str]
    labels: np.ndarray
    md5: str

    @staticmethod
    def of(folder: Path) -> Listing:
        """All images below a folder, in their fixed mixed order; BadInput if a class has none.

        ``md5`` is that of the lines "path below folder, tab, size in bytes", sorted: it tells files
        added, lost, renamed or cut short, not pixels changed in a file of equal size. (To read
        every file of ImageNet at each start would take far longer.)
        """
        try:
            classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
        except OSError as error:
            reason = f"{error.strerror}; data.root must hold train/<class>/ and val/<class>/"
            raise BadInput("root", folder, reason) from None
        if len(classes) < 2:
            raise BadInput("root", folder, f"give 2 classes or more, a folder each: {classes}")
        files, labels, digest = [], [], hashlib.md5(usedforsecurity=False)
        for label, name in enumerate(classes):
            found = sorted(
                (entry.name, entry.stat().st_size)
                for entry in os.scandir(folder / name)
                if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
            )
            if not found:
                raise BadInput("root", folder / name, f"no image ({', '.join(SUFFIXES)}) is there")
            files += [f"{name}/{file}" for file, _ in found]
            labels += [label] * len(found)
            digest.update("".join(f"{name}/{file}\t{size}\n" for file, size in found).encode())
        mixed = stream(MIX_SEED, folder.name).permutation(len(files))
        return Listing(
            folder,
            classes,
            [files[i] for i in mixed],
            np.array(labels, np.int64)[mixed],
            digest.hexdigest(),
        )

    def first(self, key: str, count: int | None) -> Listing:
        """The first ``count`` images, or all; the identity stays that of the whole folder."""
        if count is not None and count > (have := len(self.files)):
            raise BadInput(key, count, f"{self.folder} has {have:,} images; give at most {have}")
        return self[:count]

    def __getitem__(self, some: slice) -> Listing:
        return Listing(self.folder, self.classes, self.files[some], self.labels[some], self.md5)


class Folders(Partitioned[np.ndarray]):
    """An `ImageFolder` on a device, with the interface of `images.Images`."""

    def __init__(
        self,
        conf: ImageFolder,
        train: Listing,
        test: Listing,
        md5: dict[str, str],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(len(train.files), conf.workers, conf.batch, conf.seed)
        self.name, self.classes = "imagefolder", len(train.classes)
        self.md5 = md5
        self.augment, self.device, self.dtype = conf.augment, device, dtype
        self._conf, self._train, self._test = conf, train, test
        self._normalised = Normalise(IMAGENET_MEAN, IMAGENET_STD, conf.size**2, device, dtype)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._decoders = Decoders((cores or 1) if conf.processes is None else conf.processes)
        self._ahead: dict[int, tuple[int, Future[Pixels]]] = {}  # worker -> its batch begun

    @property
    def labels(self) -> np.ndarray:
        return self._train.labels

    def batch(self, worker: int, k: int) -> Batch:
        """The k-th mini-batch of a worker, both counted from 0; any k, in any order, any thread.

        Raises BadInput for a file that cannot be decoded.
        """
        found, which = None, self._which(worker, k)
        # Taken out in one step: of two threads, one finds it.
        begun, future = self._ahead.pop(worker, (None, None))
        if begun == k:
            found = future
        elif future is not None:
            future.cancel()
        found = found or self._begin(worker, k)
        if self._decoders.count:
            self._ahead[worker] = k + 1, self._begin(worker, k + 1)
        return self._batch(found, self._train.labels[which])

    def train_chunks(self, count: int | None = None, size: int = CHUNK) -> Iterator[Batch]:
        """The centres of the first ``count`` training images (all, if None), in a fixed order."""
        count = self.size if count is None else count
        if not 0 < count <= self.size:
            raise BadInput("count", count, f"give 1 to {self.size}, the training images in use")
        return self._chunks(self._train, count, size)

    def test_chunks(self, size: int = CHUNK) -> Iterator[Batch]:
        """The centres of all images evaluated on, in a fixed order; the last chunk may be less."""
        return self._chunks(self._test, len(self._test.files), size)

    def _chunks(self, split: Listing, count: int, size: int) -> Iterator[Batch]:
        begun: deque[tuple[slice, Future[Pixels]]] = deque()
        try:
            for start in range(0, count, size):
                some = slice(start, min(start + size, count))
                begun.append((some, self._decoders(self._job(split, range(count)[some]))))
                if len(begun) > self._decoders.count:  # enough of them to keep all processes busy
                    some, future = begun.popleft()
                    yield self._batch(future, split.labels[some])
            while begun:
                some, future = begun.popleft()
                yield self._batch(future, split.labels[some])
        finally:
            for _, future in begun:
                future.cancel()

    def _draw(self, number: int) -> np.ndarray:
        return self._order(number)

    def _which(self, worker: int, k: int) -> np.ndarray:
        number, mine = self._place(worker, k)
        return self._epoch(number)[mine]

    def _begin(self, worker: int, k: int) -> Future[Pixels]:
        draws, which = None, self._which(worker, k)
        if self.augment:  # an image's own stream: the same whatever M and the batch size are
            number, _ = self._place(worker, k)
            draws = np.stack([stream(self.seed, "augment", number, i).random(DRAWS) for i in which])
        return self._decoders(self._job(self._train, which, draws))

    def _job(self, split: Listing, which: range | np.ndarray, draws: Draws | None = None) -> Job:
        files = [os.path.join(split.folder, split.files[i]) for i in which]
        return Job(files, self._conf.size, self._conf.resize, draws)

    def _batch(self, future: Future[Pixels], labels: np.ndarray) -> Batch:
        pixels = torch.from_numpy(future.result()).to(self.device)
        return Batch(self._normalised(pixels), torch.from_numpy(labels).to(self.device))
