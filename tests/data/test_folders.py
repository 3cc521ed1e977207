"""Images in folders: batches are exact whoever decodes, and no process outlives its owner."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from dcasgd_repro.cli import commands as cli
from dcasgd_repro.cli.hydra import default_scale
from dcasgd_repro.data import decode as decode_module
from dcasgd_repro.data.decode import DRAWS, Decoders, Job, pixels, window
from dcasgd_repro.data.folders import IMAGENET_MEAN, IMAGENET_STD, Folders, ImageFolder
from dcasgd_repro.errors import BadInput, Failure
from dcasgd_repro.models import ResNet, ResNet50
from dcasgd_repro.run import experiment, plan, read
from dcasgd_repro.run.identity import config_hash
from dcasgd_repro.run.plan import plan_of
from dcasgd_repro.simulate import Server
from dcasgd_repro.tasks import Classification

CLASSES = ("bee", "cat", "dog")
KINDS = (("RGB", "JPEG"), ("RGB", "png"), ("L", "jpg"), ("RGBA", "png"), ("CMYK", "jpeg"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 training and 9 validation images of many shapes, modes and formats, three classes."""
    place = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, each in (("train", 9), ("val", 3)):
        for name in CLASSES:
            (place / split / name).mkdir(parents=True)
            for i in range(each):
                mode, suffix = KINDS[i % len(KINDS)]
                coarse = rng.integers(0, 256, (6, 5, 3), np.uint8)
                shape = tuple(int(n) for n in rng.integers(30, 90, 2))
                image = Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC)
                image.convert(mode).save(place / split / name / f"{i}.{suffix}")
    (place / "train" / "bee" / "notes.txt").write_text("no image")
    return place


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one colour each: class c's i-th training image is (c, i, 0), wherever cropped."""
    place = tmp_path_factory.mktemp("flat")
    for split, each in (("train", 9), ("val", 3)):
        for c, name in enumerate(CLASSES):
            (place / split / name).mkdir(parents=True)
            for i in range(each):
                Image.new("RGB", (40, 30), (c, i, 0)).save(place / split / name / f"{i}.png")
    return place


def folders(root: Path, processes: int = 0, dtype: torch.dtype = torch.float32, **keys) -> Folders:
    keys = {"workers": 2, "batch": 4, "seed": 5, "augment": True, "size": 32, "resize": 36} | keys
    return ImageFolder(str(root), processes=processes, **keys).load("cpu", dtype)


def colours(images: torch.Tensor) -> list[tuple[int, ...]]:
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    whole = ((images * std + mean) * 255).round().int()
    assert (whole == whole[:, :, :1, :1]).all()  # one colour, whatever the window
    return [tuple(image[:, 0, 0].tolist()) for image in whole]


# --- batches --------------------------------------------------------------------------------------


def test_batch_depends_on_nothing_but_worker_and_k(root: Path) -> None:
    every = [(m, k) for m in range(2) for k in range(8)]
    here = folders(root)
    expected = {at: here.batch(*at) for at in every}
    there, anyhow = folders(root, processes=2), random.Random(0).sample(every, len(every))
    found = {at: there.batch(*at) for at in anyhow[:8]}

    def ask(some: list[tuple[int, int]]) -> None:
        found.update({at: there.batch(*at) for at in some})

    threads = [threading.Thread(target=ask, args=(anyhow[8 + i :: 2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(every)
    for at in every:
        assert torch.equal(found[at].images, expected[at].images), at
        assert torch.equal(found[at].labels, expected[at].labels), at
    one = expected[0, 0].images
    assert one.shape == (4, 3, 32, 32)
    assert one.dtype == torch.float32
    assert one.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(folders(root, seed=6).batch(0, 0).images, one)
    for at in ((2, 0), (-1, 0), (0, -1)):
        with pytest.raises(IndexError, match="no batch"):
            here.batch(*at)


def test_a_workers_next_batch_is_begun_with_its_present_one(root: Path) -> None:
    data, begun = folders(root, processes=1), []
    begin = data._begin
    data._begin = lambda m, k: begun.append((m, k)) or begin(m, k)
    for at in ((0, 0), (0, 1), (1, 4), (1, 0)):
        data.batch(*at)
    assert begun == [(0, 0), (0, 1), (0, 2), (1, 4), (1, 5), (1, 0), (1, 1)]


def test_an_epoch_has_no_image_twice_and_every_label_is_right(flat: Path) -> None:
    data = folders(flat, workers=3, batch=4)
    assert (data.size, data.classes, data.batches_per_epoch) == (27, 3, 2)
    epochs = []
    for epoch in range(6):
        seen = []
        for m in range(3):
            for k in range(2):
                images, labels = data.batch(m, 2 * epoch + k)
                found = colours(images)
                assert [c for c, *_ in found] == labels.tolist()
                seen += found
        assert len(seen) == 24 == len(set(seen))
        epochs.append(tuple(seen))
    assert len(set(epochs)) == 6
    assert len({image for epoch in epochs for image in epoch}) == 27  # others sit out each time


def test_an_image_is_augmented_alike_whatever_the_partition(root: Path) -> None:
    """In one epoch an image has one window and flip, for any M and batch size; another, another."""

    def epoch(number: int, **keys: int) -> set[bytes]:
        data = folders(root, **keys)
        batches = range(number * data.batches_per_epoch, (number + 1) * data.batches_per_epoch)
        every = (data.batch(m, k).images for m in range(data.workers) for k in batches)
        return {image.numpy().tobytes() for images in every for image in images}

    assert epoch(1, workers=1, batch=27) == epoch(1, workers=3, batch=3)
    assert not epoch(1, workers=1, batch=27) & epoch(2, workers=1, batch=27)


def test_the_first_images_are_of_all_classes(flat: Path) -> None:
    few = folders(flat, train_images=12, test_images=6, workers=1)
    assert (few.size, sum(len(chunk.labels) for chunk in few.test_chunks())) == (12, 6)
    (chunk,) = few.train_chunks(12)
    assert set(chunk.labels.tolist()) == {0, 1, 2}
    assert few.md5 == folders(flat).md5


# --- pixels against torchvision -------------------------------------------------------------------


def test_the_validation_images_are_the_last_of_train_in_their_mixed_order(flat: Path) -> None:
    whole, split = folders(flat), folders(flat, validation=6)
    assert (split.size, split.md5) == (whole.size - 6, whole.md5)
    every = [*zip(whole._train.files, whole._train.labels, strict=True)]
    assert [*zip(split._train.files, split._train.labels, strict=True)] == every[:-6]
    assert [*zip(split._test.files, split._test.labels, strict=True)] == every[-6:]
    assert split._test.folder == flat / "train"
    assert sum(len(chunk.labels) for chunk in split.test_chunks()) == 6
    most = whole.size
    for keys, message in (
        ({"validation": most}, f"validation={most}: leaves nothing to train on"),
        ({"validation": -1}, "validation=-1: give a whole number"),
        ({"validation": 6, "train_images": most - 5}, f"give images={most - 6}"),
    ):
        with pytest.raises(BadInput, match=message):
            folders(flat, **keys)


def files(root: Path, split: str) -> Iterator[tuple[Path, Image.Image]]:
    for path in sorted((root / split).rglob("*.*")):
        if path.suffix != ".txt":
            yield path, Image.open(path).convert("RGB")


@pytest.mark.parametrize("processes", [0, 2])
def test_unaugmented_images_are_torchvisions(root: Path, processes: int) -> None:
    whole = transforms.Compose([
        transforms.Resize(36), transforms.CenterCrop(32), transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip
    data = folders(root, processes, augment=False)
    for split, chunks, sizes in (
        ("val", data.test_chunks(4), [4, 4, 1]),
        ("train", data.train_chunks(size=10), [10, 10, 7]),
        ("train", (data.batch(0, k) for k in range(3)), [4, 4, 4]),
    ):
        theirs = [(CLASSES.index(p.parent.name), whole(image)) for p, image in files(root, split)]
        got = list(chunks)
        assert [len(chunk.labels) for chunk in got] == sizes
        ours = [pair for c in got for pair in zip(c.labels.tolist(), c.images, strict=True)]
        left = list(range(len(theirs)))
        for label, image in ours:  # one of theirs, and each of theirs once
            (same,) = [
                i for i in left
                if theirs[i][0] == label and torch.allclose(theirs[i][1], image, atol=2e-6)
            ]  # fmt: skip
            left.remove(same)
        assert len(left) == len(theirs) - sum(sizes)
    assert torch.equal(next(data.test_chunks(4)).images, next(data.test_chunks(4)).images)
    for count in (0, 28):
        with pytest.raises(BadInput, match="count"):
            data.train_chunks(count)


def test_a_window_is_torchvisions_crop_of_it(root: Path) -> None:
    flips = set()
    for seed, (path, image) in enumerate(files(root, "train")):
        u = np.random.default_rng(seed).random(DRAWS)
        (ours,) = pixels(Job([str(path)], 32, 36, u[None]))
        theirs = functional.resized_crop(image, *window(image.height, image.width, u), [32, 32])
        if u[-1] < 0.5:
            theirs = functional.hflip(theirs)
        assert np.array_equal(ours, np.array(theirs))
        flips.add(bool(u[-1] < 0.5))
    assert flips == {True, False}


@pytest.mark.parametrize(("height", "width"), [(60, 80), (200, 30), (20, 300)])
def test_windows_are_distributed_as_torchvisions(height: int, width: int) -> None:
    rng = np.random.default_rng(1)
    ours = np.array([window(height, width, rng.random(DRAWS)) for _ in range(1500)])
    torch.manual_seed(0)
    image, draw = torch.zeros(1, height, width), transforms.RandomResizedCrop.get_params
    theirs = np.array([draw(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)])
    top, left, h, w = ours.T
    assert (ours >= 0).all()
    assert ((top + h <= height) & (left + w <= width) & (h > 0) & (w > 0)).all()
    for power in (1, 2):
        for a, b in zip(ours.T**power, theirs.T**power, strict=True):
            assert abs(a.mean() - b.mean()) <= 4.5 * np.hypot(a.std(), b.std()) / 1500**0.5


def test_where_no_window_fits_the_largest_centred_one_is_taken() -> None:
    whole = np.ones(DRAWS)  # all of the area: fits no image that is not nearly square
    for (height, width), expected in {
        (400, 90): (140, 0, 120, 90), (90, 400): (0, 140, 90, 120), (90, 91): (0, 0, 90, 91),
    }.items():  # fmt: skip
        assert window(height, width, whole) == expected


# --- refusals -------------------------------------------------------------------------------------


def test_refusals(root: Path, tmp_path: Path) -> None:
    def refusal(place: Path | None, **keys) -> str:
        keys = {"workers": 2, "batch": 4, "seed": 5, "augment": True, "processes": 0} | keys
        with pytest.raises(BadInput) as refused:
            ImageFolder(place and str(place), **keys).load()
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert refusal(None) == "root=None: name the folder that holds train/ and val/"
    assert refusal(tmp_path / "gone").startswith(
        f"root={tmp_path / 'gone' / 'train'}: No such file"
    )
    for name in CLASSES:
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "train" / name / "0.png")
    assert refusal(tmp_path).startswith(f"root={tmp_path / 'val'}: No such file")
    for name in CLASSES[:2]:
        (tmp_path / "val" / name).mkdir(parents=True)
    assert refusal(tmp_path).startswith(f"root={tmp_path / 'val' / 'bee'}: no image (.jpeg")
    for name in CLASSES[:2]:
        Image.new("RGB", (40, 40)).save(tmp_path / "val" / name / "0.png")
    assert refusal(tmp_path) == f"root={tmp_path}: class dog is in train but not in val; add it"
    (tmp_path / "one" / "train" / "bee").mkdir(parents=True)
    assert "give 2 classes or more" in refusal(tmp_path / "one")

    assert "train has 27 images; give at most 27" in refusal(root, train_images=28)
    assert refusal(root, test_images=10).startswith("test_images=10: ")
    assert refusal(root, batch=14) == "batch=14: give at most 13: 27 images / 2 workers"
    for key, value in (
        ("size", 0), ("resize", 100), ("processes", -1), ("augment", "yes"), ("seed", -1),
        ("workers", 0), ("train_images", 0),
    ):  # fmt: skip
        assert refusal(root, **{key: value}).startswith(f"{key}={value}: ")
    ten = Classification(ResNet(8, 2), ImageFolder(str(root), 2, 4, 5, True, processes=0))
    with pytest.raises(BadInput, match=r"^task.model.classes=10: the data has 3 classes"):
        ten.on(torch.device("cpu"))


@pytest.mark.parametrize("processes", [0, 1])
def test_a_damaged_image_is_named(root: Path, tmp_path: Path, processes: int) -> None:
    whole = (root / "train" / "bee" / "0.JPEG").read_bytes()
    damages = {"cut.jpg": whole[: len(whole) // 2], "text.jpg": b"no image", "empty.png": b""}
    decode = Decoders(processes)
    for name, content in damages.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput) as refused:
            decode(Job([str(tmp_path / name)], 32, 36)).result()
        line = str(refused.value)
        assert line.startswith(f"{tmp_path / name}=unreadable: ")
        assert line.endswith("; replace this image")
        assert "\n" not in line
    good = Job([str(root / "train" / "bee" / "0.JPEG")], 32, 36)
    assert np.array_equal(decode(good).result(), pixels(good))  # it goes on


def rgb16(rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """A PNG of three channels of 16 bits, which Pillow does not write; and their high bytes."""
    values = rng.integers(0, 2**16, (40, 50, 3), np.uint16)

    def chunk(kind: bytes, content: bytes) -> bytes:
        ends = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
        return ends[0] + kind + content + ends[1]

    head = struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks), (values >> 8).astype(np.uint8)


@pytest.mark.parametrize("processes", [0, 1])
def test_odd_images_are_torchvisions_or_refused_by_name(tmp_path: Path, processes: int) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
    palette = noise.convert("P", palette=Image.Palette.ADAPTIVE)
    ink = Image.fromarray(rng.integers(0, 256, (40, 50, 4), np.uint8), "CMYK")
    good = {
        "one.png": noise.crop((0, 0, 1, 1)), "one.jpg": noise.crop((0, 0, 1, 1)),
        "narrow.png": noise.crop((0, 0, 1, 40)), "cmyk.jpg": ink, "palette.png": palette,
        "bit.png": noise.convert("1"), "alpha.png": noise.convert("LA"), "palette.bmp": palette,
    }  # fmt: skip
    for name, image in good.items():
        image.save(tmp_path / name)
    palette.save(tmp_path / "clear.png", transparency=3)
    content, high = rgb16(rng)
    (tmp_path / "rgb16.png").write_bytes(content)
    decode = Decoders(processes)
    for name in (*good, "clear.png", "rgb16.png"):
        with Image.open(tmp_path / name) as opened:
            whole = Image.fromarray(high) if name == "rgb16.png" else opened.convert("RGB")
        right = functional.center_crop(functional.resize(whole, 36), [32, 32])
        found = decode(Job([str(tmp_path / name)], 32, 36)).result()[0]
        assert np.array_equal(found, np.asarray(right)), name
    deep = rng.integers(0, 2**16, (40, 50), np.uint16)
    for name, values in (("grey16.png", deep), ("grey16.ppm", deep)):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(BadInput, match=rf"{name}=unreadable: mode I.* more than 8 bits"):
            decode(Job([str(tmp_path / name)], 32, 36)).result()


def test_the_identity_tells_files_not_pixels(flat: Path, tmp_path: Path) -> None:
    before = folders(flat).md5
    assert set(before) == {"train", "val"}
    extra = flat / "train" / "dog" / "extra.png"
    try:
        extra.write_bytes(b"123")
        changed = folders(flat).md5
    finally:
        extra.unlink()
    assert changed["train"] != before["train"]
    assert changed["val"] == before["val"]
    assert folders(flat).md5 == before


# --- processes ------------------------------------------------------------------------------------

OWNER = """
import os, sys, time
from dcasgd_repro.data.decode import Decoders, Job
decode = Decoders(2)
jobs = [decode(Job(sys.argv[2:], 32, 36)) for _ in range(8)]
jobs[0].result(), jobs[1].result()
children = open(f"/proc/self/task/{os.getpid()}/children").read()
for task in os.listdir("/proc/self/task"):
    children += open(f"/proc/self/task/{task}/children").read()
print(*set(children.split()), flush=True)
time.sleep(0 if sys.argv[1] == "end" else 60)
"""


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", ["end", "SIGINT", "SIGTERM", "SIGKILL"])
def test_no_process_outlives_its_owner(root: Path, how: str) -> None:
    some = [str(path) for path, _ in files(root, "train")]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, how, *some], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        children = owner.stdout.readline().split()
        assert len(children) == 2
        if how != "end":
            os.killpg(owner.pid, signal.Signals[how])  # as a terminal's Ctrl-C: the whole group
        began = time.perf_counter()
        owner.wait(20)
        while any(alive(child) for child in children):
            assert time.perf_counter() - began < 20
            time.sleep(0.02)


def test_a_killed_process_is_told(root: Path) -> None:
    def ours() -> set[str]:
        tasks = Path("/proc/self/task").iterdir()
        return {pid for task in tasks for pid in (task / "children").read_text().split()}

    before, decode = ours(), Decoders(1)
    job = Job([str(root / "train" / "bee" / "1.png")], 32, 36)
    decode(job).result()
    (child,) = ours() - before
    os.kill(int(child), signal.SIGKILL)
    with pytest.raises(OSError, match="it ended with -9") as message:
        decode(job).result()
    assert message.value.filename == "a decoding process"


def test_a_data_set_let_go_ends_its_processes(root: Path) -> None:
    before = set(threading.enumerate())
    data = folders(root, processes=2)
    data.batch(0, 0)
    feeding = set(threading.enumerate()) - before  # one for each process; waits for its end
    assert len(feeding) == 2
    del data
    for thread in feeding:
        thread.join(20)
        assert not thread.is_alive()


# --- the experiment -------------------------------------------------------------------------------


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


TINY = ["task.model._target_=dcasgd_repro.models.ResNet", "+task.model.depth=${model.depth}"]
TINY += ["+task.model.width=${model.width}", "task.model.classes=3", "task.data.size=32"]
TINY += ["task.data.resize=36", "images=27", "test_images=9", "workers=2", "batch=4", "epochs=2"]


def tiny(root: Path, run: Path, *more: str) -> DictConfig:
    return composed(
        "+exp=imagenet_dc", "scale=smoke", *TINY, f"data.root={root}", f"run_dir={run}", *more
    )


def weights(run: Path) -> str:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    return summary["weights_sha256"]


def test_runs_and_resumes_to_the_same_bits_whoever_decodes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    whole = experiment.run(
        plan_of(tiny(root, tmp_path / "a", "task.data.processes=0")), say=said.append
    )
    assert "imagefolder, ResNet-8 width 4, " in said[0]
    assert read.status_of(whole) == "finished"
    assert json.loads((whole / "provenance.json").read_text())["data_md5"] == folders(root).md5

    receive = Server.receive_gradient

    def signalled(server: Server, *arguments: object) -> object:
        result = receive(server, *arguments)
        if server.pushes == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(Server, "receive_gradient", signalled)
        run = experiment.run(plan_of(tiny(root, tmp_path / "b", "task.data.processes=2")), say=len)
    assert read.status_of(run) == "interrupted"
    experiment.run(plan_of(tiny(root, tmp_path / "b", "task.data.processes=1")), say=len)
    assert weights(run) == weights(whole)
    assert (run / "metrics.csv").read_text().splitlines()[0].startswith("push")


def test_a_decoder_that_is_killed_stops_the_run_which_goes_on_to_the_same_bits(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("epochs=1", "checkpoint.every_s=0")
    whole = experiment.run(plan_of(tiny(root, tmp_path / "a", *few)), say=len)
    started, receive = [], Server.receive_gradient
    start = decode_module._start

    def killed(server: Server, *arguments: object) -> object:
        result = receive(server, *arguments)
        if server.pushes == 4:
            for process in started:
                process.kill()
        return result

    with monkeypatch.context() as patched:
        patched.setattr(decode_module, "_start", lambda: started.append(start()) or started[-1])
        patched.setattr(Server, "receive_gradient", killed)
        line = r"^run_dir=.*: it ended with -9 \(a decoding process\); the last checkpoint is "
        with pytest.raises(Failure, match=line):
            experiment.run(plan_of(tiny(root, tmp_path / "b", *few, "task.data.processes=2")))
    assert started
    assert read.status_of(tmp_path / "b") == "failed"
    run = experiment.run(plan_of(tiny(root, tmp_path / "b", *few)), say=len)
    assert weights(run) == weights(whole)


def test_the_command_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dcasgd-repro", "train", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    few = ["scale=smoke", *TINY, "engine=threads", "epochs=0.5", "task.data.processes=1"]
    code, out, _ = call("task=imagenet", *few, f"data.root={root}", "run_dir=X")
    assert code == 0
    assert "finished" in out
    assert "CIFAR" not in out
    assert "Table 1" not in out
    short = ["+exp=imagenet_dc", "epochs=0.001"]  # else it draws 4.8 million pushes first
    for arguments, line in (
        (short, "data.root=None: name the folder that holds train/ and val/"),
        ([*short, "data.root=gone"], "data.root=gone/train: No such file"),
        ([*short, f"data.root={root}"], "images=1281167: "),
        (["+exp=imagenet_dc", "model.depth=20"], "model.depth=20: task imagefolder reads no model"),
        (["-m", "+exp=imagenet_dc,cifar_dc"], "scale=None: choose one; cifar10, imagenet have no"),
        (["task=imagenet", "scale=smoke", f"data.root={root}", "images=27", "test_images=9",
          "workers=2", "batch=4"], "task.model.classes=1000: the data has 3 classes"),
    ):  # fmt: skip
        code, out, err = call(*arguments)
        assert code == 2
        assert err.startswith(f"dcasgd-repro: {line}")
        assert (err.count("\n"), out) == (1, "")


def test_the_papers_configuration() -> None:
    asgd, ssgd, dc = (
        composed(*default_scale("train", [f"+exp=imagenet_{n}"]), f"+exp=imagenet_{n}")
        for n in ("asgd", "ssgd", "dc")
    )
    for cfg in (asgd, ssgd, dc):
        length = plan.length_of(cfg)
        assert (cfg.scale, cfg.workers, cfg.batch, length.pushes) == ("imagenet", 16, 32, 4_804_377)
        rate = plan.build(cfg, "lr")
        assert [rate(e) for e in (0, 29, 31, 61, 91)] == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-4])
        task = plan.build(cfg, "task")
        assert task.model == ResNet50(1000)
        assert (task.data.size, task.data.resize, task.data.processes) == (224, 256, None)
        assert cfg.schedule.barrier is (cfg is ssgd)
    rule = plan.build(dc, "rule")
    assert (rule.lam0, rule.decay, rule.momentum) == (2.0, 0.0, 0.0)
    same = composed("scale=imagenet", "+exp=imagenet_dc", "task.data.processes=3", "data.root=x")
    assert config_hash(plan.plain_config(dc)) == config_hash(plan.plain_config(same))


# table2.csv: hours per epoch of the paper's cluster.
@pytest.mark.parametrize(("name", "hours"), [("asgd", 1.109), ("ssgd", 1.243)])
def test_the_schedule_takes_the_papers_time(name: str, hours: float) -> None:
    cfg = composed("scale=imagenet", f"+exp=imagenet_{name}")
    log = plan.log_of(cfg, 1_281_167 // 32)
    assert log.duration_s / 3600 == pytest.approx(hours, rel=0.005)
