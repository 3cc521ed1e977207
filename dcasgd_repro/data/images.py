"""A data set on one device, with random access to each worker's mini-batches.

``batch(worker, k)`` is a function of (seed, worker, k) and of nothing else: no iterator state, no
device, no thread count. That is what makes resumed, batched, graphed and distributed runs see the
very images that the plain loop sees.
"""

from __future__ import annotations

import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from dcasgd_repro.data import fetch
from dcasgd_repro.data.fetch import Split
from dcasgd_repro.data.split import Classes, Dirichlet, Parts
from dcasgd_repro.errors import BadInput, check_choice, check_number, check_whole

PAD = 4  # pixels on each side that a random crop may move over
_DRAWING = threading.Lock()  # not a data set's own: that could not be copied or pickled
EPOCHS_KEPT = 16  # workers of unequal speed straddle epochs; another one is drawn again

# Of the 50,000 training images, per channel, in units of the pixel range.
CIFAR10_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR10_STD = (0.24703223, 0.24348513, 0.26158784)


class Batch(NamedTuple):
    """A mini-batch: normalised ``images`` [B, C, H, W], channels last; ``labels`` int64 [B]."""

    images: Tensor
    labels: Tensor


Epoch = TypeVar("Epoch")


class Partitioned(ABC, Generic[Epoch]):
    """The part of a data set that says which images are mini-batch k of worker m.

    Epoch ``e = k // batches_per_epoch`` has a permutation of all images; worker m takes its m-th
    stretch of ``size // workers`` images, in ``batches_per_epoch`` whole batches. So in one epoch
    no image comes twice, over all workers; the few that fill no whole batch sit it out, and other
    ones in the next. ``_draw`` says what else an epoch has. Raises BadInput: ``workers``,
    ``batch`` or ``seed`` out of range, or a batch larger than a shard.

    With ``divide`` each worker has a part of its own instead, of which it draws a permutation for
    each of its epochs: ``k // (whole batches in its part)`` is one.
    """

    parts: Parts | None = None

    def __init__(self, size: int, workers: int, batch: int, seed: int) -> None:
        self.size, self.workers, self.batch_size, self.seed = size, workers, batch, seed
        self.batches_per_epoch = batches_per_epoch(size, workers, batch, seed)
        self._starts = [m * (size // workers) for m in range(workers)]
        self._batches = [self.batches_per_epoch] * workers
        self._epochs: dict[int, Epoch] = {}

    @property
    @abstractmethod
    def labels(self) -> np.ndarray:
        """Of the training images, int64 [N]."""

    def divide(self, split: Dirichlet | Classes) -> None:
        """Gives each worker a part of its own; a single worker keeps all. Before any batch.

        Raises BadInput for a split that these images do not allow.
        """
        if self.workers == 1:
            return
        self.parts = split.parts(self.labels, self.workers, stream(self.seed, "split"))
        sizes = [len(part) for part in self.parts]
        if self.batch_size > (least := min(sizes)):
            remedy = f"the smallest worker's part has {least} images; give at most {least}"
            raise BadInput("batch", self.batch_size, remedy)
        self._starts = [0, *np.cumsum(sizes).tolist()][:-1]
        self._batches = [size // self.batch_size for size in sizes]

    @abstractmethod
    def _draw(self, number: int) -> Epoch:
        """What an epoch has, drawn from its own streams."""

    def _order(self, number: int) -> np.ndarray:
        """The permutation of an epoch, int64 [N]; of parts, one after another."""
        if self.parts is None:
            return stream(self.seed, "order", number).permutation(self.size)
        return np.concatenate([
            stream(self.seed, "order", number, m).permutation(part)
            for m, part in enumerate(self.parts)
        ])  # fmt: skip

    def _place(self, worker: int, k: int) -> tuple[int, slice]:
        """The epoch of mini-batch k of a worker, and where in its order the mini-batch lies."""
        if not (0 <= worker < self.workers and k >= 0):
            raise IndexError(f"no batch {k} of worker {worker} among {self.workers}")
        number, turn = divmod(k, self._batches[worker])
        start = self._starts[worker] + turn * self.batch_size
        return number, slice(start, start + self.batch_size)

    def _epoch(self, number: int) -> Epoch:
        with _DRAWING:  # once, whichever thread asks first
            known = number in self._epochs
            epoch = self._epochs.pop(number) if known else self._draw(number)
            if len(self._epochs) >= EPOCHS_KEPT:
                del self._epochs[next(iter(self._epochs))]  # the one not asked for the longest
            self._epochs[number] = epoch
            return epoch


class Normalise:
    """uint8 [B, H, W, C] -> ``(x / 255 - mean) / std``, [B, C, H, W], memory channels last.

    ``mean`` and ``std`` are per channel, in units of the pixel range; ``pixels`` is H x W.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        pixels: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        # As x * scale + shift, repeated for every pixel: a last dimension of 3 would be six times
        # slower. Never computed below float32.
        self._dtype, self._working = dtype, torch.promote_types(dtype, torch.float32)
        spread = np.asarray(std, np.float64)
        scale, shift = 1 / (255 * spread), -np.asarray(mean, np.float64) / spread
        self._scale = torch.from_numpy(np.tile(scale, pixels)).to(device, self._working)
        self._shift = torch.from_numpy(np.tile(shift, pixels)).to(device, self._working)

    def __call__(self, pixels: Tensor) -> Tensor:
        flat = pixels.reshape(len(pixels), -1).to(self._working).mul_(self._scale).add_(self._shift)
        return flat.to(self._dtype).view(pixels.shape).permute(0, 3, 1, 2)


class _Epoch(NamedTuple):
    """One epoch's order of the images [N], and the augmentation of each, in that order."""

    order: Tensor
    crop: Tensor  # first pixel of the window, counted in the padded image
    flip: Tensor  # int64, 0 or 1


class Images(Partitioned[_Epoch]):
    """A training and a test split on one device, partitioned anew over the workers every epoch.

    Augmentation is the usual one of the CIFAR-10 ResNets (He et al. 2016, section 4.2): a random
    32x32 crop of the image padded by 4, and a horizontal flip with probability 1/2. The padding is
    black, put on before normalisation, as in torchvision's ``RandomCrop(32, padding=4)`` ahead of
    ``ToTensor``. (Padding the mean-subtracted image would show the mean colour instead.)

    The order and the augmentation are drawn by numpy on the CPU, once an epoch for all images,
    each from a stream of its own: switching augmentation off leaves the order alone.

    Args:
        train, test: ``(images, labels)``, uint8 [N, C, H, W] and int64 [N]. ``test`` is what is
            evaluated on: the test images, or the validation images.
        mean, std: per channel, in units of the pixel range: images are ``(x / 255 - mean) / std``.
        seed: of the order and the augmentation, >= 0.
        md5: file name -> md5, what identifies the data; empty for generated data.

    Raises:
        BadInput: ``workers``, ``batch`` or ``seed`` out of range, or a batch larger than a shard.
    """

    def __init__(
        self,
        name: str,
        train: Split,
        test: Split,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        workers: int,
        batch: int,
        seed: int,
        augment: bool,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        classes: int = 10,
        md5: dict[str, str] | None = None,
    ) -> None:
        self.name, self.classes, self.md5 = name, classes, dict(md5 or {})
        super().__init__(len(train[1]), workers, batch, seed)
        self.augment = augment
        self.device, self.dtype = torch.device(device), dtype
        self._pad = PAD if augment else 0
        self._train = _channels_last(train[0], self._pad).to(self.device)
        self._test = _channels_last(test[0], 0).to(self.device)
        self._train_labels = torch.from_numpy(train[1]).to(self.device)
        self._test_labels = torch.from_numpy(test[1]).to(self.device)
        _, self._height, self._width, channels = self._test.shape

        # Every row of pixels that any crop can contain, as overlapping views of the padded images:
        # a crop is then H rows, each copied whole. Several times faster than indexing pixels.
        pixels = self._train.numel() // channels
        self._rows = self._train.as_strided(
            (pixels - self._width + 1, self._width * channels), (channels, 1)
        )
        padded_width = self._width + 2 * self._pad
        self._row_starts = torch.arange(self._height, device=self.device) * padded_width
        self._image_pixels = (self._height + 2 * self._pad) * padded_width

        self._normalised = Normalise(mean, std, self._height * self._width, self.device, dtype)

    @property
    def labels(self) -> np.ndarray:
        return self._train_labels.cpu().numpy()

    def batch(self, worker: int, k: int) -> Batch:
        """The k-th mini-batch of a worker, both counted from 0; any k, in any order."""
        number, mine = self._place(worker, k)
        epoch = self._epoch(number)
        order = epoch.order[mine]
        first = order * self._image_pixels + epoch.crop[mine]
        rows = self._rows.index_select(0, (first[:, None] + self._row_starts).view(-1))
        pixels = rows.view(len(order), self._height, self._width, -1)
        if self.augment:
            # Both versions of each image, then one of the two: cheaper than torch.where on bytes.
            both = torch.stack([pixels, pixels.flip(2)], dim=1).flatten(0, 1)
            chosen = torch.arange(0, 2 * len(order), 2, device=self.device) + epoch.flip[mine]
            pixels = both.index_select(0, chosen)
        return Batch(self._normalised(pixels), self._train_labels[order])

    def train_chunks(self, count: int | None = None, size: int = 1000) -> Iterator[Batch]:
        """The first ``count`` training images (all, if None), as they are, in a fixed order."""
        count = self.size if count is None else count
        if not 0 < count <= self.size:
            raise BadInput("count", count, f"give 1 to {self.size}, the training images in use")
        inside = slice(self._pad, -self._pad or None)
        return self._chunks(self._train[:count, inside, inside], self._train_labels[:count], size)

    def test_chunks(self, size: int = 1000) -> Iterator[Batch]:
        """All images evaluated on, as they are, in a fixed order; the last chunk may be smaller."""
        return self._chunks(self._test, self._test_labels, size)

    def _chunks(self, images: Tensor, labels: Tensor, size: int) -> Iterator[Batch]:
        for pixels, some in zip(images.split(size), labels.split(size), strict=True):
            yield Batch(self._normalised(pixels), some)

    def _draw(self, number: int) -> _Epoch:
        order = self._order(number)
        crop, flip = np.zeros(self.size, np.int64), np.zeros(self.size, np.int64)
        if self.augment:
            random = stream(self.seed, "augment", number)
            down, right = random.integers(0, 2 * PAD + 1, (2, self.size))
            crop = (down * (self._width + 2 * PAD) + right)[order]
            flip = random.integers(0, 2, self.size)[order]
        return _Epoch(*(torch.from_numpy(a).to(self.device) for a in (order, crop, flip)))


@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 from disk (Krizhevsky 2009): 50,000 training and 10,000 test images, 10 classes.

    Args:
        root: folder of the data, see `fetch.home`; None for DCASGD_DATA or the user's cache.
        workers: M, over which each epoch is partitioned.
        batch: mini-batch size of one worker.
        seed: of the order and the augmentation.
        augment: random crops and flips of the training images.
        train_images, test_images: use only the first so many; None for all.
        validation: keep the last so many training images out of training, and evaluate on them in
            place of the test images; None to train on all and evaluate on the test images.
    """

    root: str | None
    workers: int
    batch: int
    seed: int
    augment: bool
    train_images: int | None = None
    test_images: int | None = None
    validation: int | None = None

    def __post_init__(self) -> None:
        _limit("test_images", self.test_images, fetch.RECORDS)
        batches_per_epoch(self._trained_on, self.workers, self.batch, self.seed)
        check_choice("augment", self.augment, (True, False))

    @property
    def _trained_on(self) -> int:
        return trained_on(self.train_images, self.validation, 5 * fetch.RECORDS)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Images:
        """The data, verified, on the device. Downloads nothing: missing data is a `BadInput`."""
        train, test = fetch.load(self.root)
        return Images(
            "cifar10",
            _first(train, self._trained_on),
            _last(train, self.validation) if self.validation else _first(test, self.test_images),
            mean=CIFAR10_MEAN,
            std=CIFAR10_STD,
            workers=self.workers,
            batch=self.batch,
            seed=self.seed,
            augment=self.augment,
            device=device,
            dtype=dtype,
            md5=fetch.BINARY_MD5,  # what `fetch.load` has just verified
        )


@dataclass(frozen=True)
class Synthetic:
    """Generated 32x32 colour images that a small convolutional network learns in some 100 steps.

    Each class is a smooth periodic pattern. An image is its class's pattern shifted by any amount
    (which leaves a linear model little but the mean colour), at a random contrast, plus pixel
    noise. The data set has a fixed seed of its own: runs with other seeds, and other numbers of
    images, share the images that they have in common. ``seed`` is that of the order and the
    augmentation.

    Args:
        noise: standard deviation of the pixel noise, in units of the pixel range (0 to 255).
        workers, batch, seed, augment: as for `CIFAR10`.
        validation: evaluate on so many training images after the first ``train_images``, which
            training never sees; None to evaluate on the test images.
    """

    workers: int
    batch: int
    seed: int
    augment: bool
    train_images: int = 4096
    test_images: int = 1024
    classes: int = 10
    noise: float = 60.0
    validation: int | None = None

    def __post_init__(self) -> None:
        for key in ("train_images", "test_images"):
            check_whole(key, getattr(self, key), 1, MOST)
        if self.validation is not None:
            check_whole("validation", self.validation, 1, MOST)
        check_whole("classes", self.classes, 2)
        batches_per_epoch(self.train_images, self.workers, self.batch, self.seed)
        check_choice("augment", self.augment, (True, False))
        check_number("noise", self.noise)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Images:
        """The data on the device, generated in about a third of a second."""
        held_out = self.validation or 0
        train = generate("train", self.train_images + held_out, self.classes, self.noise)
        if held_out:
            evaluated = _last(train, held_out)
        else:
            evaluated = generate("test", self.test_images, self.classes, self.noise)
        return Images(
            "synthetic",
            _first(train, self.train_images),
            evaluated,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            workers=self.workers,
            batch=self.batch,
            seed=self.seed,
            augment=self.augment,
            device=device,
            dtype=dtype,
            classes=self.classes,
        )


MOST = 200_000  # generated images
SYNTHETIC_SEED = 2017  # of the generated data set itself, whatever the run's seed
FREQUENCIES = 3  # periods over the width of a pattern, at most


def generate(split: str, count: int, classes: int, noise: float) -> Split:
    """The first ``count`` images of a generated split: uint8 [count, 3, 32, 32], int64 [count]."""
    width = 32
    waves = np.fft.fftfreq(width, 1 / width)
    smooth = (np.abs(waves)[:, None] <= FREQUENCIES) & (np.abs(waves) <= FREQUENCIES)
    white = stream(SYNTHETIC_SEED, "patterns", 0).standard_normal((classes, 3, width, width))
    patterns = np.fft.ifft2(np.fft.fft2(white) * smooth).real
    patterns /= patterns.std(axis=(1, 2, 3), keepdims=True)
    twice = np.tile(patterns.astype(np.float32), (1, 1, 2, 2))
    shifted = np.lib.stride_tricks.sliding_window_view(twice, (width, width), axis=(2, 3))

    labels = stream(SYNTHETIC_SEED, f"{split} labels", 0).integers(0, classes, count)
    shifts = stream(SYNTHETIC_SEED, f"{split} shifts", 0).integers(0, width, (count, 2))
    contrast = stream(SYNTHETIC_SEED, f"{split} contrast", 0).uniform(20, 60, count)
    images = stream(SYNTHETIC_SEED, f"{split} noise", 0).standard_normal(
        (count, 3, width, width), np.float32
    )
    images *= noise
    images += 127.5
    down, right = shifts.T
    images += contrast.astype(np.float32)[:, None, None, None] * shifted[labels, :, down, right]
    return np.clip(images, 0, 255, out=images).astype(np.uint8), labels


def stream(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """An own stream of random numbers for each (seed, name, numbers)."""
    return np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()), *numbers))
    )


def _channels_last(images: fetch.Bytes, pad: int) -> Tensor:
    """uint8 [N, C, H, W] -> [N, H + 2 pad, W + 2 pad, C] with a black border."""
    n, channels, height, width = images.shape
    padded = torch.zeros(n, height + 2 * pad, width + 2 * pad, channels, dtype=torch.uint8)
    padded[:, pad : pad + height, pad : pad + width] = torch.from_numpy(images).permute(0, 2, 3, 1)
    return padded


def _first(split: Split, count: int | None) -> Split:
    return split[0][:count], split[1][:count]


def _last(split: Split, count: int) -> Split:
    return split[0][-count:], split[1][-count:]


def trained_on(images: int | None, validation: int | None, available: int) -> int:
    """How many training images are trained on: the first ``images``, or all but ``validation``.

    Raises BadInput for a split that leaves no image to train on, and for ``images`` that would
    train on some of the last ``validation``, which are for evaluation.
    """
    if validation is None:
        return _limit("train_images", images, available)
    check_whole("validation", validation)
    if validation >= available:
        remedy = f"leaves nothing to train on; give less than {available}, or null for none"
        raise BadInput("validation", validation, remedy)
    left = available - validation
    if images is None:
        return left
    check_whole("train_images", images)
    if images > left:
        remedy = f"the last {validation} of {available} are for validation; give images={left}"
        raise BadInput("train_images", images, remedy)
    return images


def batches_per_epoch(size: int, workers: int, batch: int, seed: int) -> int:
    """Whole batches in one worker's shard; refuses counts that leave none."""
    check_whole("workers", workers, 1)
    check_whole("batch", batch, 1)
    check_whole("seed", seed, 0)
    if workers > size:
        raise BadInput("workers", workers, f"there are {size} training images; give at most that")
    if batch > (shard := size // workers):
        raise BadInput("batch", batch, f"give at most {shard}: {size} images / {workers} workers")
    return shard // batch


def _limit(key: str, value: int | None, available: int) -> int:
    if value is None:
        return available
    check_whole(key, value)
    if value > available:
        raise BadInput(key, value, f"give 1 to {available}, or null for all")
    return value
