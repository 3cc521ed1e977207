"""Whose are which training images: splits in which the workers' data are not alike.

A split gives each worker a part of its own, for the whole run; every image is in exactly one part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dcasgd_repro.errors import BadInput, check_choice, check_number, check_whole

Parts = list[np.ndarray]  # of each worker, the numbers of its images, int64, rising


@dataclass(frozen=True)
class Dirichlet:
    """Each worker's classes are mixed by shares ``q_m ~ Dirichlet(alpha p)`` of its own.

    p are the shares of the classes in the training set, so that q_m has the mean p and variances of
    ``p_c (1 - p_c) / (alpha + 1)``: alpha is the whole concentration. Codes that write
    Dirichlet(a, ..., a) for C classes mean alpha = C a. A small alpha leaves a worker as few
    classes as fill its part; a large one makes the parts alike.

    The parts are equally large, but for one image. Worker 0 draws its images by q_0, one after
    another and without replacement, then worker 1 by q_1, and so on. A class of which none is left
    drops out of q_m; where that leaves nothing, the worker takes what there is. So the last workers
    get what the others left.

    Source: Hsu, Qi, Brown, 2019 (arXiv 1909.06335), read at second hand; the order of drawing, and
    what happens to an exhausted class, are our choice.
    """

    alpha: float

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 1e9, "(]")

    def parts(self, labels: np.ndarray, workers: int, rng: np.random.Generator) -> Parts:
        """The images of each worker, by their labels [N]."""
        stacks = _shuffled(labels, rng)
        left = np.array([len(stack) for stack in stacks])
        concentration = self.alpha * left / left.sum()
        sizes = [len(part) for part in np.array_split(labels, workers)]
        parts = []
        for size in sizes:
            counts = _drawn(size, rng.dirichlet(concentration), left, rng)
            part = [s[n - c : n] for s, n, c in zip(stacks, left, counts, strict=True)]
            parts.append(np.sort(np.concatenate(part)))
            left = left - counts
        return parts


@dataclass(frozen=True)
class Classes:
    """Each worker has images of exactly n = ``classes_per_worker`` classes.

    Each in turn is given the n that the fewest have, ties being drawn. So the numbers of workers
    that share a class differ by one at most. A class's images are dealt evenly to those workers,
    and what is over to those with the fewest images, ties being drawn. With all classes the parts
    then differ by one image at most; else they are equally large only where n times the number of
    workers is a multiple of the number of classes, and the classes are. An image of a smaller part
    is seen more often.

    Raises BadInput where there are fewer classes than n, or where nobody would have some class.
    Source: in the spirit of McMahan et al., 2017 (arXiv 1602.05629), whose shards of sorted images
    can hold two classes; the turns are our choice.
    """

    classes_per_worker: int

    def __post_init__(self) -> None:
        check_whole("classes_per_worker", self.classes_per_worker)

    def parts(self, labels: np.ndarray, workers: int, rng: np.random.Generator) -> Parts:
        """The images of each worker, by their labels [N]."""
        stacks, n = _shuffled(labels, rng), self.classes_per_worker
        classes, key = len(stacks), "task.classes_per_worker"
        if n > classes:
            raise BadInput(key, n, f"the training images have {classes} classes; give at most that")
        if workers * n < classes:
            remedy = f"{workers} workers would leave {classes - workers * n} of {classes} classes "
            remedy += f"to nobody; give at least {-(-classes // workers)}"
            raise BadInput(key, n, remedy)
        owners: list[list[int]] = [[] for _ in stacks]
        for m in range(workers):
            drawn = rng.permutation(classes).tolist()
            for those in sorted((owners[c] for c in drawn), key=len)[:n]:
                those.append(m)
        for stack, those in zip(stacks, owners, strict=True):
            if len(stack) < len(those):
                remedy = f"{len(those)} workers share a class of {len(stack)} image(s); give less"
                raise BadInput(key, n, remedy)
        sizes = np.zeros(workers, int)
        for stack, those in zip(stacks, owners, strict=True):
            sizes[those] += len(stack) // len(those)
        dealt: list[list[np.ndarray]] = [[] for _ in range(workers)]
        for stack, those in zip(stacks, owners, strict=True):
            spare = len(stack) % len(those)
            by_size = sorted(rng.permutation(those).tolist(), key=lambda m: sizes[m])
            sizes[by_size[:spare]] += 1
            for m, share in zip(by_size, np.array_split(stack, len(those)), strict=True):
                dealt[m].append(share)  # the first ones are larger by one image
        return [np.sort(np.concatenate(shares)) for shares in dealt]


def split_of(
    name: str | None, alpha: float | None, classes_per_worker: int | None
) -> Dirichlet | Classes | None:
    """The split of that name, from the one option that it reads. Raises BadInput."""
    if name is not None:
        check_choice("split", name, ("dirichlet", "classes"))
    options = {"dirichlet": ("alpha", alpha), "classes": ("classes_per_worker", classes_per_worker)}
    for split, (key, value) in options.items():
        if (value is None) == (split == name):
            remedy = f"task.split={name} needs a number" if value is None else ""
            raise BadInput(key, value, remedy or f"is read with task.split={split} only")
    if alpha is not None:
        return Dirichlet(alpha)
    return None if classes_per_worker is None else Classes(classes_per_worker)


def _shuffled(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The images of each class that there is, in an order that is drawn."""
    return [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def _drawn(size: int, shares: np.ndarray, left: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How many of each class are among ``size`` images drawn by ``shares``, of those left."""
    counts = np.zeros_like(left)
    while (missing := size - counts.sum()) > 0:
        # Draws of a class that is exhausted on the way count for nothing, and are drawn again.
        weights = np.where(counts < left, shares, 0.0)
        if weights.sum() == 0:
            weights = (left - counts).astype(float)
        counts = np.minimum(counts + rng.multinomial(missing, weights / weights.sum()), left)
    return counts
