"""Tasks: gradients against autograd and finite differences, evaluation against a second way."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from dcasgd_repro import tasks
from dcasgd_repro.data.images import Images, Synthetic
from dcasgd_repro.errors import BadInput
from dcasgd_repro.models import ResNet
from dcasgd_repro.rules import ASGD, SSGD
from dcasgd_repro.schedule import Gamma, Generated
from dcasgd_repro.simulate import Server, simulate
from dcasgd_repro.tasks import Classification, Classifier, Quadratic

DATA = Synthetic(workers=1, batch=1, seed=0, augment=False)
CPU = torch.device("cpu")


def classifier(
    dtype: torch.dtype = torch.float64, norm: str = "batch", workers: int = 2, **keys: object
) -> Classifier:
    data = Synthetic(
        workers=workers, batch=8, seed=0, augment=True, train_images=128, test_images=64
    )
    model = ResNet(depth=8, width=2, norm=norm)
    return Classification(model=model, data=data, **keys).on(CPU, dtype)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_gradient_is_that_of_the_plain_module(weight_decay: float) -> None:
    task = classifier(weight_decay=weight_decay)
    w, batch = task.initial(3), task.batch(1, 2)
    loss, g = task.gradient(w, batch)

    torch.manual_seed(3)
    module = ResNet(depth=8, width=2).build().double()
    assert torch.equal(parameters_to_vector(module.parameters()), w)
    sgd = torch.optim.SGD(module.parameters(), lr=1.0, weight_decay=weight_decay)
    plain = F.cross_entropy(module(batch.images), batch.labels)
    plain.backward()
    sgd.step()
    torch.testing.assert_close(
        w - g, parameters_to_vector(module.parameters()).detach(), rtol=1e-12, atol=1e-14
    )
    expected = plain.detach() + weight_decay / 2 * (w @ w)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


def test_gradient_against_finite_differences() -> None:
    task = classifier(weight_decay=0.1)
    w, batch = task.initial(0), task.batch(0, 0)
    _, g = task.gradient(w, batch)
    direction = torch.randn(len(w), generator=torch.Generator().manual_seed(0), dtype=w.dtype)
    h = 1e-6
    up, down = (task.gradient(w + s * h * direction, batch)[0] for s in (1, -1))
    assert ((up - down) / (2 * h)).item() == pytest.approx((g @ direction).item(), rel=1e-5)


def test_gradient_and_evaluate_leave_no_trace() -> None:
    task = classifier(torch.float32)
    w, batch = task.initial(0), task.batch(0, 0)
    kept, first = w.clone(), task.gradient(w, batch)
    state = copy.deepcopy(task.module.state_dict())
    measured = task.evaluate(w, [])
    for k in range(3):
        task.gradient(torch.randn_like(w), task.batch(1, k))
        task.evaluate(torch.randn_like(w), [])
    assert torch.equal(w, kept)
    assert all(torch.equal(v, task.module.state_dict()[k]) for k, v in state.items())
    assert all(isinstance(p, nn.Parameter) for p in task.module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first, task.gradient(w, batch), strict=True))
    assert task.evaluate(w, []) == measured


def test_one_worker_trains_as_torch_sgd_does_to_the_bit() -> None:
    """The whole pipe, float64: images, ResNet with BatchNorm, weight decay, momentum."""
    task = classifier(workers=1, weight_decay=0.01)
    w0 = task.initial(0)
    server = Server(ASGD(momentum=0.9), w0, 1)
    log = Generated(workers=1, seed=0, compute=Gamma(mean_s=1.0, cv=0.1)).messages(20)
    for _ in simulate(task, server, log, lambda t: 0.05):
        pass

    module = task.conf.model.build().double()
    nn.utils.vector_to_parameters(w0, module.parameters())
    sgd = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for k in range(20):
        images, labels = task.batch(0, k)
        sgd.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        sgd.step()
    assert torch.equal(server.w, nn.utils.parameters_to_vector(module.parameters()))


def test_ssgd_of_m_is_one_big_batch_without_batchnorm() -> None:
    task, workers = classifier(norm="none", workers=4), 4
    w = task.initial(0)
    server = Server(SSGD(), w, workers)
    log = Generated(
        workers=workers, seed=0, compute=Gamma(mean_s=1.0, cv=0.3), barrier=True
    ).messages(12)
    for _ in simulate(task, server, log, lambda t: 0.1):
        pass
    for k in range(3):
        batches = [task.batch(m, k) for m in range(workers)]
        images = torch.cat([b.images for b in batches])
        labels = torch.cat([b.labels for b in batches])
        _, g = task.gradient(w, type(batches[0])(images, labels))
        w = w - 0.1 * g
    torch.testing.assert_close(server.w, w, rtol=1e-11, atol=1e-13)


def test_evaluate_against_a_second_implementation() -> None:
    task = classifier(stats_images=96, train_images=40)
    w = task.initial(1)
    module = ResNet(depth=8, width=2).build().double()
    vector_to_parameters(w.clone(), module.parameters())
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    images, labels = next(iter(task.images.train_chunks(128, size=128)))
    with torch.no_grad():
        module.train()(images[:96])
        module.eval()
        train = module(images[:40]).argmax(1).ne(labels[:40]).double().mean().item()
        (tests,) = task.images.test_chunks(size=64)
        logits = module(tests.images)
    found = task.evaluate(w, [])
    assert found["train_error"] == pytest.approx(train, abs=1e-15)
    assert found["test_error"] == pytest.approx(
        logits.argmax(1).ne(tests.labels).double().mean().item(), abs=1e-15
    )
    loss = F.cross_entropy(logits, tests.labels).item()
    assert found["test_loss"] == pytest.approx(loss, rel=1e-12)


def test_evaluate_in_several_chunks_is_evaluate_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors and losses are sums over images, whatever the chunks."""
    task = classifier(norm="none", stats_images=96, train_images=100)
    w, whole = task.initial(1), None
    for size in (1000, 24):
        monkeypatch.setattr(task.images, "test_chunks", lambda s=size: _chunks(task, "_test", s))
        monkeypatch.setattr(
            task.images, "train_chunks", lambda n, s=size: _chunks(task, "_train", s, n)
        )
        found = task.evaluate(w, [])
        assert whole is None or found == pytest.approx(whole, rel=1e-12)
        whole = found


def _chunks(task: Classifier, split: str, size: int, count: int | None = None) -> object:
    images = task.images
    method = Images.test_chunks if split == "_test" else Images.train_chunks
    return method(images, size=size) if count is None else method(images, count, size=size)


def test_batchnorm_statistics_are_a_plain_average_over_the_chunks() -> None:
    task = classifier(stats_images=128)
    task.evaluate(task.initial(1), [])
    first = next(m for m in task.evaluated.modules() if isinstance(m, nn.BatchNorm2d))
    assert first.momentum is None
    assert first.num_batches_tracked.item() == 1


def separately(
    vectors: list[torch.Tensor], shares: list[torch.Tensor], task: Classifier, w: torch.Tensor
) -> float:
    """Test loss at w, each normalisation's statistics averaged by hand over networks of their own.

    The moments come from hooks on the inputs of the normalisations, not from BatchNorm's buffers.
    """
    gathered: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    for vector, images in zip(vectors, shares, strict=True):
        module = ResNet(depth=8, width=2).build().double().train()
        vector_to_parameters(vector.clone(), module.parameters())
        moments: list[tuple[torch.Tensor, torch.Tensor]] = []

        def note(part: object, inputs: tuple[torch.Tensor], to: list = moments) -> None:
            to.append((inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))))

        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.register_forward_pre_hook(note)
        with torch.no_grad():
            module(images)
        gathered.append(moments)
    module = ResNet(depth=8, width=2).build().double()
    vector_to_parameters(w.clone(), module.parameters())
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for k, norm in enumerate(norms):
        norm.running_mean.copy_(sum(moments[k][0] for moments in gathered) / len(gathered))
        norm.running_var.copy_(sum(moments[k][1] for moments in gathered) / len(gathered))
    (tests,) = task.images.test_chunks(size=64)
    with torch.no_grad():
        return F.cross_entropy(module.eval()(tests.images), tests.labels).item()


@pytest.mark.parametrize("lagging", [False, True])
def test_statistics_of_the_workers_against_a_second_implementation(lagging: bool) -> None:
    task = classifier(stats_images=98, statistics="workers", workers=4)  # shares of 24; 2 sit out
    w = task.initial(1)
    sent = [task.initial(m) if lagging else w for m in range(4)]
    images, _ = next(iter(task.images.train_chunks(96, size=96)))
    expected = separately(sent, list(images.split(24)), task, w)
    assert task.evaluate(w, sent)["test_loss"] == pytest.approx(expected, rel=1e-12)
    plain = classifier(stats_images=98, workers=4).evaluate(w, sent)["test_loss"]
    assert plain != pytest.approx(expected, rel=1e-6)


def test_one_worker_that_holds_w_has_the_statistics_of_w_alone() -> None:
    one = classifier(statistics="workers", workers=1, stats_images=96)
    w = one.initial(1)
    assert one.evaluate(w, [w]) == classifier(workers=1, stats_images=96).evaluate(w, [])


def test_a_large_share_is_taken_in_equal_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "CHUNK", 20)
    task = classifier(statistics="workers", stats_images=100)  # two shares of 48: three 16s each
    w, other = task.initial(1), task.initial(2)
    images, _ = next(iter(task.images.train_chunks(96, size=96)))
    expected = separately([w] * 3 + [other] * 3, list(images.split(16)), task, w)
    assert task.evaluate(w, [w, other])["test_loss"] == pytest.approx(expected, rel=1e-12)


def test_by_default_what_the_workers_hold_does_not_matter() -> None:
    task = classifier(torch.float32)
    w = task.initial(1)
    assert task.evaluate(w, [task.initial(2)] * 2) == task.evaluate(w, [])


def test_initial_depends_on_its_seed_alone() -> None:
    task = classifier()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first = task.initial(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(task.initial(5), first)
    assert not torch.equal(task.initial(6), first)


def test_quadratic() -> None:
    task = Quadratic(curvature=[2.0, 0.5], start=3.0, noise=0.5, seed=1).on(CPU)
    w = task.initial(0)
    assert w.tolist() == [3.0, 3.0]
    loss, g = task.gradient(w, torch.zeros(2))
    assert loss.item() == 0.5 * (2 * 9 + 0.5 * 9)
    assert g.tolist() == [6.0, 1.5]
    noise = torch.stack([task.batch(m, k) for m in range(4) for k in range(500)])
    assert noise.std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(task.batch(2, 7), task.batch(2, 7))
    assert not torch.equal(task.batch(2, 7), task.batch(3, 7))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Quadratic(curvature=[]), "curvature"),
        (lambda: Quadratic(curvature=[float("nan")]), "curvature"),
        (lambda: Quadratic(noise=-1.0), "noise"),
        (lambda: Quadratic(start=float("inf")), "start"),
        (lambda: Classification(ResNet(), DATA, weight_decay=-1.0), "weight_decay"),
        (lambda: Classification(ResNet(), DATA, weight_decay=float("nan")), "weight_decay"),
        (lambda: Classification(ResNet(), DATA, stats_images=0), "stats_images"),
        (lambda: Classification(ResNet(), DATA, train_images=1.5), "train_images"),
        (lambda: Classification(ResNet(), DATA, statistics="server"), "statistics"),
        (lambda: classifier(workers=4, stats_images=3, statistics="workers"), "stats_images"),
    ],
)
def test_refusals(make: object, key: str) -> None:
    with pytest.raises(BadInput, match=f"^{key}="):
        make()
