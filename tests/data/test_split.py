"""Splits of the training images among workers: whose are which, and which batches that makes."""

import math
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.data.folders import ImageFolder
from dcasgd_repro.data.images import EPOCHS_KEPT, Images, Synthetic, stream
from dcasgd_repro.data.split import Classes, Dirichlet
from dcasgd_repro.errors import BadInput
from dcasgd_repro.models import ResNet
from dcasgd_repro.run import read
from dcasgd_repro.run.compose import composed
from dcasgd_repro.run.identity import config_hash, identity
from dcasgd_repro.run.plan import plain_config
from dcasgd_repro.tasks import Classification

SPLITS = [Dirichlet(0.5), Dirichlet(100.0), Dirichlet(1e-9), Classes(2), Classes(3), Classes(10)]


def labels_of(size: int, classes: int = 10, seed: int = 0) -> np.ndarray:
    return stream(seed, "test labels").integers(0, classes, size)


def shares_of(labels: np.ndarray, part: np.ndarray) -> np.ndarray:
    return np.bincount(labels[part], minlength=labels.max() + 1) / len(part)


@pytest.mark.parametrize("workers", [5, 8, 13])
@pytest.mark.parametrize("split", SPLITS, ids=repr)
def test_the_parts_are_a_partition_of_the_images(split: Dirichlet | Classes, workers: int) -> None:
    labels = labels_of(1_003)
    parts = split.parts(labels, workers, np.random.default_rng(1))
    assert sorted(chain(*parts)) == list(range(1_003))
    again = split.parts(labels, workers, np.random.default_rng(1))
    other = split.parts(labels, workers, np.random.default_rng(2))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))
    if isinstance(split, Dirichlet):
        assert {len(part) for part in parts} == {1_003 // workers, 1_003 // workers + 1}


@pytest.mark.parametrize(("workers", "n"), [(5, 2), (8, 2), (10, 1), (16, 3), (3, 4), (4, 10)])
def test_each_worker_has_exactly_n_classes(workers: int, n: int) -> None:
    labels = labels_of(2_000)
    for seed in range(5):
        parts = Classes(n).parts(labels, workers, np.random.default_rng(seed))
        held = [set(labels[part].tolist()) for part in parts]
        assert [len(classes) for classes in held] == [n] * workers
        sharing = np.bincount(list(chain(*held)), minlength=10)
        assert sharing.max() - sharing.min() <= 1
        for c in range(10):  # dealt evenly among those that share the class
            dealt = [int((labels[part] == c).sum()) for part in parts if c in labels[part]]
            assert max(dealt) - min(dealt) <= 1
    rings = {tuple(Classes(2).parts(labels, 5, np.random.default_rng(s))[0]) for s in range(5)}
    assert len(rings) >= 3


def test_spare_images_go_to_the_smallest_parts() -> None:
    labels = labels_of(320)  # not a multiple of 16 in each class
    for seed in range(5):
        parts = Classes(10).parts(labels, 16, np.random.default_rng(seed))
        assert [len(part) for part in parts] == [20] * 16
    uneven = labels_of(325)
    parts = Classes(10).parts(uneven, 16, np.random.default_rng(0))
    assert sorted(map(len, parts)) == [20] * 11 + [21] * 5
    # With fewer classes, no worker is the larger one by its number.
    sizes = np.array([
        [len(part) for part in Classes(5).parts(labels, 16, np.random.default_rng(seed))]
        for seed in range(400)
    ])  # fmt: skip
    error = sizes.std(axis=0, ddof=1) / math.sqrt(400)
    assert (abs(sizes.mean(axis=0) - 20) < 4 * error).all()


def test_shares_have_the_moments_of_a_dirichlet_law() -> None:
    # Worker 0 of M = 10 finds no class exhausted: its n = 40 images are Dirichlet-multinomial.
    # E share = p, Var share = p (1 - p) / (alpha + 1) (1 + alpha / n); a Dirichlet's as n grows.
    p, n, alpha, seeds = np.array([0.5, 0.3, 0.2]), 40, 1.5, 2_500
    labels = np.repeat(np.arange(3), (400 * p).astype(int))
    found = np.array([
        shares_of(labels, Dirichlet(alpha).parts(labels, 10, np.random.default_rng(seed))[0])
        for seed in range(seeds)
    ])  # fmt: skip
    variance = p * (1 - p) / (alpha + 1) * (1 + alpha / n)
    for values, expected in ((found, p), ((found - p) ** 2, variance)):
        error = values.std(axis=0, ddof=1) / math.sqrt(seeds)
        assert (error < 0.05 * expected).all()
        assert (abs(values.mean(axis=0) - expected) < 4 * error).all()
    crossed = (found[:, 0] - p[0]) * (found[:, 1] - p[1])
    expected = -p[0] * p[1] / (alpha + 1) * (1 + alpha / n)
    assert abs(crossed.mean() - expected) < 4 * crossed.std() / math.sqrt(seeds)


def test_the_limits_of_alpha() -> None:
    labels = np.repeat(np.arange(10), 100)
    alike = Dirichlet(1e9).parts(labels, 4, np.random.default_rng(0))
    shares = np.array([shares_of(labels, part) for part in alike])
    assert abs(shares - 0.1).max() < 4 * math.sqrt(0.1 * 0.9 / 250)
    single = Dirichlet(1e-9).parts(labels, 20, np.random.default_rng(0))
    assert [len(set(labels[part])) for part in single[:3]] == [1, 1, 1]


def divided(split: Dirichlet | Classes, workers: int = 4, augment: bool = False, seed: int = 5):
    """Random pixels; the first pixel of an image is its number."""
    labels = labels_of(203, classes=5)
    pixels = np.zeros((203, 3, 32, 32), np.uint8)
    pixels[:, 0] = np.arange(203)[:, None, None]
    data = Images("numbered", (pixels, labels), (pixels[:7], labels[:7]), mean=(0, 0, 0),
                  std=(1, 1, 1), workers=workers, batch=6, seed=seed, augment=augment, classes=5,
                  dtype=torch.float64)  # fmt: skip
    data.divide(split)
    return data


def numbers(data: Images, worker: int, k: int) -> list[int]:
    batch = data.batch(worker, k)
    found = (batch.images[:, 0].amax(dim=(1, 2)) * 255).round().long()  # black borders are 0
    assert torch.equal(torch.from_numpy(data.labels)[found], batch.labels)
    return found.tolist()


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("split", [Dirichlet(0.5), Classes(2)], ids=repr)
def test_a_workers_batches_come_from_its_part_alone(split, augment: bool) -> None:
    data = divided(split, augment=augment)
    for m, part in enumerate(data.parts):
        whole = len(part) // 6
        assert whole >= 2
        epochs = [[i for j in range(whole) for i in numbers(data, m, e * whole + j)]
                  for e in range(6)]  # fmt: skip
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch)  # no image twice in an epoch of its own
            assert set(epoch) <= set(part.tolist())
        assert len({tuple(epoch) for epoch in epochs}) == 6
        assert set(chain(*epochs)) == set(part.tolist())


def test_a_batch_depends_on_nothing_but_seed_worker_and_k() -> None:
    asked = [(m, k) for k in range(12 * EPOCHS_KEPT) for m in range(4)]
    data = divided(Classes(2), augment=True)
    first = {key: data.batch(*key) for key in asked}
    np.random.default_rng(2).shuffle(asked)
    again = divided(Classes(2), augment=True)
    for key in asked[:150]:
        assert torch.equal(again.batch(*key).images, first[tuple(key)].images)
    other = divided(Classes(2), augment=True, seed=6)
    assert not torch.equal(other.batch(1, 3).images, first[1, 3].images)
    assert len(data._epochs) <= EPOCHS_KEPT


def test_one_worker_has_all_images_and_the_batches_it_had() -> None:
    plain, alone = divided(Classes(5), workers=1), divided(Classes(1), workers=1)
    whole = Images("numbered", (np.zeros((203, 3, 32, 32), np.uint8), plain.labels),
                   (np.zeros((7, 3, 32, 32), np.uint8), plain.labels[:7]), mean=(0, 0, 0),
                   std=(1, 1, 1), workers=1, batch=6, seed=5, augment=False)  # fmt: skip
    assert alone.parts is None
    seen = set()
    for k in range(2 * (203 // 6)):
        assert numbers(plain, 0, k) == numbers(alone, 0, k)
        assert torch.equal(alone.batch(0, k).labels, whole.batch(0, k).labels)
        seen.update(numbers(alone, 0, k))
    assert len(seen) > 195


def test_a_task_is_divided_by_its_keys() -> None:
    data = Synthetic(4, 8, 1, True, train_images=400, test_images=16)
    task = Classification(ResNet(8, 2), data, 0.0, 40, 40, split="dirichlet", alpha=0.3).on("cpu")
    expected = Dirichlet(0.3).parts(task.images.labels, 4, stream(1, "split"))
    assert all(np.array_equal(a, b) for a, b in zip(task.images.parts, expected, strict=True))
    assert task.double().images.parts is task.images.parts
    assert Classification(ResNet(8, 2), data).on("cpu").images.parts is None


def test_folders_of_images_are_divided_too(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        (folder := tmp_path / split / name).mkdir(parents=True)
        for i in range(7):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(folder / f"{i}.png")
    data = ImageFolder(str(tmp_path), 2, 3, 0, True, size=8, resize=8, processes=0).load()
    data.divide(Classes(1))
    labels = [{int(x) for k in range(5) for x in data.batch(m, k).labels} for m in (0, 1)]
    assert sorted(map(sorted, labels)) == [[0], [1]]


def test_without_a_split_a_run_is_the_one_it_was() -> None:
    config = plain_config(composed(["task=synthetic", "scale=smoke"]))
    keys = ("split", "alpha", "classes_per_worker")
    older = {**config, "task": {k: v for k, v in config["task"].items() if k not in keys}}
    assert set(keys) <= set(config["task"])
    assert (config_hash(older), identity(older)) == (config_hash(config), identity(config))
    divided = plain_config(composed(["task=synthetic", "scale=smoke", "task.split=classes"]))
    assert config_hash(divided) != config_hash(config)


# --- runs ----------------------------------------------------------------------------------------

RUN = ["task=synthetic", "scale=smoke", "images=128", "batch=8", "workers=4", "rule=dcasgd_a"]
RUN += ["epochs=1", "model.width=2", "test_images=16", "task.stats_images=16", "threads=1"]
RUN += ["task.train_images=16", "log_every=8"]


def test_a_run_stops_and_goes_on_and_engines_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*RUN, "task.split=classes", "task.classes_per_worker=3"]
    assert cli.dispatch("train", [*words, "run_dir=A", "stop_epoch=0.5"]) == 0
    assert "split by Classes(classes_per_worker=3)" in capsys.readouterr().out
    for more in ("run_dir=A", "run_dir=B engine=threads"):
        assert cli.dispatch("train", [*words, *more.split()]) == 0
    a, b = (read.summary_of(tmp_path / name)["weights_sha256"] for name in "AB")
    assert a == b
    assert cli.verify(["A"]) == 0
    capsys.readouterr()
    assert cli.diagnose(["A", "--out", "figures"]) == 0
    said = capsys.readouterr().out
    assert "of its own (classes, classes_per_worker = 3)." in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("split=dirichlet task.alpha=0", "task.alpha=0: give a finite number > 0"),
        ("split=dirichlet task.alpha=-1", "task.alpha=-1: give a finite number > 0"),
        ("split=dirichlet", "task.alpha=None: task.split=dirichlet needs a number"),
        ("split=classes", "task.classes_per_worker=None: task.split=classes needs a number"),
        ("alpha=0.5", "task.alpha=0.5: is read with task.split=dirichlet only"),
        (
            "split=classes task.classes_per_worker=2 task.alpha=1",
            "task.alpha=1: is read with task.split=dirichlet only",
        ),
        ("split=by_hand", "task.split=by_hand: choose dirichlet or classes"),
        (
            "split=classes task.classes_per_worker=11",
            "task.classes_per_worker=11: the training images have 10 classes; give at most that",
        ),
        (
            "split=classes task.classes_per_worker=2",
            "task.classes_per_worker=2: 4 workers would leave 2 of 10 classes to nobody; give at "
            "least 3",
        ),
        ("split=classes task.classes_per_worker=0", "task.classes_per_worker=0: give a whole"),
        (
            "split=dirichlet task.alpha=1 workers=300 batch=1",
            "workers=300: there are 128 training images; give at most that",
        ),
        (
            "split=dirichlet task.alpha=1 task.statistics=workers",
            "task.statistics=workers: takes them on images of all kinds, not on a worker's own",
        ),
    ],
)
def test_bad_input_is_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [*RUN, f"run_dir={tmp_path / 'A'}", *f"task.{words}".split()]
    assert cli.dispatch("train", given) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"dcasgd-repro: {message}"), said
    assert "\n" not in said


def test_parts_that_are_too_small_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^batch=6: the smallest worker's part has \d images; give"):
        divided(Classes(1), workers=33)
    labels = np.array([0, 1, 1, 1, 1])
    with pytest.raises(BadInput, match=r"2: 4 workers share a class of 1 image\(s\); give less"):
        Classes(2).parts(labels, 4, np.random.default_rng(0))
