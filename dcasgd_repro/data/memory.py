"""A data set of one's own: tensors in memory, from a function or class that gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcasgd_repro.data.fetch import Split
from dcasgd_repro.data.images import Batch, Images, Partitioned, batches_per_epoch, trained_on
from dcasgd_repro.errors import BadInput, check_choice, check_whole, in_words


@dataclass(frozen=True)
class InMemory:
    """Images and labels that ``make()`` returns: ``(images, labels), (test images, test labels)``.

    uint8 images [N, C, H, W] are pixels. They are augmented as in `Images`, then normalised by mean
    and standard deviation of each channel over the images that are trained on. float32 and float64
    images [N, ...], of any shape, reach the network as they are; ``augment`` must be False. Labels
    are whole numbers [N], the classes those from 0 to the largest. Tensors or NumPy arrays.

    Args:
        make: without arguments; each call must return the same. It is called when the data is
            loaded, in every process that trains. The md5s of what it returned identify the data.
        workers, batch, seed, augment, train_images, test_images, validation: as for `CIFAR10`.

    ``load`` raises BadInput, naming ``make``, where that raises or returns anything else.
    """

    make: Callable[[], Any]
    workers: int
    batch: int
    seed: int
    augment: bool
    train_images: int | None = None
    test_images: int | None = None
    validation: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.make):
            remedy = "give it __call__(self), or give a function, that returns the images"
            raise self._refused(f"an object of it cannot be called; {remedy}")
        for key in ("train_images", "test_images", "validation"):
            if getattr(self, key) is not None:
                check_whole(key, getattr(self, key))
        check_choice("augment", self.augment, (True, False))
        if self.train_images is not None:
            batches_per_epoch(self.train_images, self.workers, self.batch, self.seed)

    def __str__(self) -> str:
        made = self.make.func if isinstance(self.make, partial) else self.make
        return str(getattr(made, "__name__", type(made).__name__))

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Images | Tensors:
        """The data on the device, checked."""
        train, test = self._made()
        md5 = {"train": _md5(train), "test": _md5(test)}
        classes = int(max(train[1].max(), test[1].max())) + 1
        self._check_sizes(len(train[1]), len(test[1]))
        used = trained_on(self.train_images, self.validation, len(train[1]))
        if self.validation is not None:
            evaluated = train[0][-self.validation :], train[1][-self.validation :]
        else:
            evaluated = test[0][: self.test_images], test[1][: self.test_images]
        trained = train[0][:used], train[1][:used]
        name, pixels = str(self).lower(), train[0].dtype == np.uint8
        shared: dict[str, Any] = {"workers": self.workers, "batch": self.batch, "seed": self.seed}
        shared |= {"device": device, "dtype": dtype, "classes": classes, "md5": md5}
        if pixels:
            mean, std = moments(trained[0])
            shared |= {"mean": mean, "std": std, "augment": self.augment}
            return Images(name, trained, evaluated, **shared)
        if self.augment:
            remedy = f"crops and flips are for uint8 [N, C, H, W], and {self} gives"
            raise BadInput("augment", self.augment, f"{remedy} {train[0].dtype}; set augment=false")
        return Tensors(name, trained, evaluated, **shared)

    def _check_sizes(self, train: int, test: int) -> None:
        left = train - (self.validation or 0)
        remedy = f"{self} gives {train:,} training and {test:,} test images"
        if left > 0:
            remedy += f"; set images={left} and test_images={test}, or less"
        for key, most in (("train_images", train), ("test_images", test)):
            if (asked := getattr(self, key)) is not None and asked > most:
                raise BadInput(key, asked, remedy)

    def _made(self) -> tuple[Split, Split]:
        try:
            found = self.make()
        except Exception as error:  # whatever their code raises
            raise self._refused(f"raises {in_words(error)}") from None
        due = "return (images, labels), (test images, test labels)"
        if not _is_pair(found) or not all(_is_pair(split) for split in found):
            raise self._refused(f"{due}, not {_shape_of(found)}")
        train, test = (
            self._split(which, *split)
            for which, split in zip(("training", "test"), found, strict=True)
        )
        one, other = ((split[0].dtype, split[0].shape[1:]) for split in (train, test))
        if one != other:
            words = [f"{dtype} {[*shape]}" for dtype, shape in (one, other)]
            raise self._refused(f"a training image is {words[0]}, and a test image {words[1]}")
        return train, test

    def _split(self, which: str, images: Any, labels: Any) -> Split:
        """The arrays of a split, uint8 or float and int64. BadInput."""
        for what, part in (("images", images), ("labels", labels)):
            if not isinstance(part, Tensor | np.ndarray):
                kind = type(part).__name__
                raise self._refused(f"its {which} {what} are a {kind}; give a tensor or an array")
        images, labels = _array(images), _array(labels)
        what = f"its {which} images are {images.dtype} {[*images.shape]}"
        if images.dtype == np.uint8 and images.ndim != 4:
            raise self._refused(f"{what}; uint8 is for pixels [N, C, H, W], else give float32")
        if images.dtype not in (np.uint8, np.float32, np.float64):
            raise self._refused(f"{what}; give uint8 pixels [N, C, H, W], or float32 [N, ...]")
        if images.ndim < 2 or not images.size:
            raise self._refused(f"{what}; give [N, ...], and one image at least")
        if images.dtype != np.uint8 and not np.isfinite(images).all():
            raise self._refused(f"a number of its {which} images is not finite")
        what = f"its {which} labels are {labels.dtype} {[*labels.shape]}"
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise self._refused(f"{what}; give a whole number for each of {len(images):,} images")
        if labels.min() < 0 or labels.max() > MOST_CLASSES:
            told = f"from {labels.min()} to {labels.max()}"
            raise self._refused(f"its {which} labels are {told}; classes are counted from 0")
        return images, labels.astype(np.int64)

    def _refused(self, remedy: str) -> BadInput:
        return BadInput("data", self, remedy)


MOST_CLASSES = 1_000_000  # a label beyond is none


class Tensors(Partitioned[Tensor]):
    """Float images of any shape [N, ...] on a device, with the interface of `images.Images`."""

    def __init__(
        self,
        name: str,
        train: Split,
        test: Split,
        *,
        workers: int,
        batch: int,
        seed: int,
        device: torch.device | str,
        dtype: torch.dtype,
        classes: int,
        md5: dict[str, str],
    ) -> None:
        super().__init__(len(train[1]), workers, batch, seed)
        self.name, self.classes, self.md5 = name, classes, md5
        self.device = torch.device(device)
        self._train, self._test = (
            Batch(
                torch.tensor(images, dtype=dtype, device=device),
                torch.tensor(labels, device=device),
            )
            for images, labels in (train, test)
        )

    @property
    def labels(self) -> np.ndarray:
        return self._train.labels.cpu().numpy()

    def batch(self, worker: int, k: int) -> Batch:
        """The k-th mini-batch of a worker, both counted from 0; any k, in any order."""
        number, mine = self._place(worker, k)
        order = self._epoch(number)[mine]
        return Batch(*(part[order] for part in self._train))

    def train_chunks(self, count: int | None = None, size: int = 1000) -> Iterator[Batch]:
        """The first ``count`` training images (all, if None), in a fixed order."""
        parts = [part[:count].split(size) for part in self._train]
        return map(Batch, *parts)

    def test_chunks(self, size: int = 1000) -> Iterator[Batch]:
        """All images evaluated on, in a fixed order; the last chunk may be smaller."""
        return map(Batch, *(part.split(size) for part in self._test))

    def _draw(self, number: int) -> Tensor:
        return torch.from_numpy(self._order(number)).to(self.device)


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], over the pixel range.

    From counts of whole numbers, so that no machine rounds them otherwise. A constant channel has
    the deviation 1.
    """
    values = np.arange(256)
    counts = [np.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])]
    first = [int(n @ values) / int(n.sum()) for n in counts]
    second = [int(n @ values**2) / int(n.sum()) for n in counts]
    spread = [max(b - a * a, 0.0) ** 0.5 for a, b in zip(first, second, strict=True)]
    return tuple(a / 255 for a in first), tuple(s / 255 if s else 1.0 for s in spread)


def _is_pair(found: Any) -> bool:
    return isinstance(found, tuple | list) and len(found) == 2


def _shape_of(found: Any) -> str:
    """What was returned, for a refusal: its type, and of a tuple those inside."""
    if isinstance(found, tuple | list) and len(found) <= 4:
        return f"({', '.join(map(_shape_of, found))})"
    return f"a {type(found).__name__}"


def _array(part: Tensor | np.ndarray) -> np.ndarray:
    """A writable array, without a copy where there is one."""
    if isinstance(part, Tensor):
        return np.asarray(part.detach().cpu().numpy())
    return part if part.flags.writeable else part.copy()


def _md5(split: Split) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for part in split:
        digest.update(f"{part.dtype.str} {part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
