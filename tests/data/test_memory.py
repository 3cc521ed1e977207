"""Data of one's own: what is served of it, and each way that it does not fit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dcasgd_repro.data.images import CIFAR10_MEAN, Images
from dcasgd_repro.data.memory import InMemory, Tensors, moments
from dcasgd_repro.data.split import Classes
from dcasgd_repro.errors import BadInput

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 3, 6, 5)).astype(np.uint8)
FLOATS = RNG.standard_normal((12, 4)).astype(np.float32)
LABELS = np.arange(12) % 3


def served(train: Any, test: Any = None, **changes: Any) -> Images | Tensors:
    parts = {"workers": 2, "batch": 3, "seed": 0, "augment": False, **changes}
    return InMemory(lambda: (train, train if test is None else test), **parts).load()


def test_pixels_are_normalised_by_the_images_that_are_trained_on() -> None:
    whole = served((PIXELS, LABELS), train_images=8)
    used = PIXELS[:8].transpose(1, 0, 2, 3).reshape(3, -1) / 255
    mean, std = used.mean(axis=1), used.std(axis=1)
    assert np.allclose(moments(PIXELS[:8]), (mean, std), rtol=1e-12)
    [chunk] = whole.test_chunks()
    due = (PIXELS / 255 - mean[:, None, None]) / std[:, None, None]
    assert np.allclose(chunk.images, due, atol=1e-5)
    assert (whole.size, whole.classes, whole.batches_per_epoch) == (8, 3, 1)
    assert moments(np.full((2, 1, 4, 4), 51, np.uint8)) == ((0.2,), (1.0,))
    assert CIFAR10_MEAN[0] == pytest.approx(0.4914, abs=1e-4)  # in the same units


def test_tensors_and_arrays_give_the_same_batches_and_md5() -> None:
    frozen = FLOATS.copy()
    frozen.flags.writeable = False
    one = served((frozen, LABELS))
    other = served((torch.tensor(FLOATS), torch.tensor(LABELS)))
    assert one.md5 == other.md5
    assert one.md5 != served((FLOATS + 1, LABELS)).md5
    seen = []
    for m, k in ((0, 0), (1, 0), (0, 1), (1, 1)):
        images, labels = one.batch(m, k)
        assert torch.equal(images, other.batch(m, k).images)
        rows = [FLOATS.tolist().index(row) for row in images.tolist()]
        assert labels.tolist() == LABELS[rows].tolist()
        seen += rows
    assert sorted(seen) == list(range(12))  # an epoch has each image once


def test_floats_are_served_in_chunks_and_in_the_tasks_precision() -> None:
    data = InMemory(lambda: ((FLOATS, LABELS), (FLOATS, LABELS)), 2, 3, 0, False, validation=4)
    images = data.load(dtype=torch.float64)
    assert (images.size, images.batch(0, 0).images.dtype) == (8, torch.float64)
    sizes = [len(chunk.labels) for chunk in images.train_chunks(7, 3)]
    assert sizes == [3, 3, 1]
    [kept] = images.test_chunks()
    assert kept.labels.tolist() == LABELS[-4:].tolist()
    assert np.array_equal(kept.images, FLOATS[-4:].astype(np.float64))


def test_floats_are_split_by_class_among_the_workers() -> None:
    data = served((FLOATS, LABELS), workers=3)
    data.divide(Classes(1))
    held = [set(data.batch(m, k).labels.tolist()) for m in range(3) for k in range(4)]
    assert [held[4 * m : 4 * m + 4] for m in range(3)] == [[held[4 * m]] * 4 for m in range(3)]
    assert sorted(map(min, held[::4])) == [0, 1, 2]


def test_pixels_are_augmented_as_ours_are() -> None:
    plain, other = (served((PIXELS, LABELS), augment=augment) for augment in (False, True))
    assert torch.equal(plain.batch(1, 5).labels, other.batch(1, 5).labels)
    assert not torch.equal(plain.batch(1, 5).images, other.batch(1, 5).images)


def raises() -> None:
    raise KeyError("x")


def wrong(images: Any = FLOATS, labels: Any = LABELS) -> Callable[[], Any]:
    return lambda: ((images, labels), (FLOATS, LABELS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (raises, r"raises KeyError: 'x' \(.*test_memory.py, line \d+: raise KeyError"),
        (lambda: None, "return .images, labels., .test images, test labels., not a NoneType"),
        (lambda: (FLOATS, LABELS), "not .a ndarray, a ndarray."),
        (lambda: (FLOATS, LABELS, FLOATS, LABELS), "not .a ndarray, a ndarray, a ndarray, a nd"),
        (wrong([[1.0]]), "its training images are a list; give a tensor or an array"),
        (wrong(FLOATS, list(LABELS)), "its training labels are a list; give"),
        (wrong(PIXELS[0]), r"uint8 \[3, 6, 5\]; uint8 is for pixels \[N, C, H, W\], else"),
        (wrong(LABELS[:, None]), r"images are int64 \[12, 1\]; give uint8 pixels"),
        (wrong(FLOATS.astype(np.float16)), r"images are float16 \[12, 4\]; give uint8"),
        (wrong(FLOATS[:, 0]), r"images are float32 \[12\]; give \[N, ...\], and one image"),
        (wrong(FLOATS[:0], LABELS[:0]), r"images are float32 \[0, 4\]; give \[N"),
        (wrong(FLOATS * np.nan), "a number of its training images is not finite"),
        (wrong(FLOATS, LABELS[:5]), r"labels are int64 \[5\]; give a whole number for each of 12"),
        (wrong(FLOATS, LABELS / 1), r"labels are float64 \[12\]; give a whole number"),
        (wrong(FLOATS, LABELS[:, None]), r"labels are int64 \[12, 1\]; give a whole number"),
        (wrong(FLOATS, LABELS - 1), "labels are from -1 to 1; classes are counted from 0"),
        (wrong(FLOATS[:, :2]), r"image is float32 \[2\], and a test image float32 \[4\]"),
        (wrong(FLOATS.astype(np.float64)), r"image is float64 \[4\], and a test image float32"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Callable[[], Any], message: str) -> None:
    name = getattr(make, "__name__", "")
    with pytest.raises(BadInput, match=rf"^data={name}: .*{message}") as refused:
        InMemory(make, 2, 3, 0, augment=False).load()
    assert "\n" not in str(refused.value)
