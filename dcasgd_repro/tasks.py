"""Tasks: a parameter vector and a mini-batch in, a loss and a gradient vector out.

Only this module knows that w [P] has parts with shapes. A task has

    initial(seed) -> w          the initial vector [P], from its own random stream
    batch(worker, k) -> Batch   mini-batch k of a worker, a function of (seed, worker, k)
    loss(w, batch)              mean loss, differentiable in w
    gradient(w, batch)          (mean loss, its gradient [P]); pure in w
    draws                       whether a gradient draws random numbers, as dropout does; then each
                                is computed by itself, and its numbers depend on (seed, worker, k)
    same_loss                   equal for tasks whose loss is one function of w and the batch
    copy.copy(task)             a task that another thread may use at the same time
    double() -> task            the task in float64, on the same mini-batches
    evaluate(w, sent) -> dict   measurements of w, a function of w and of the vectors that the
                                workers hold, in their order (``Server.sent``)
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import UninitializedParameter

from dcasgd_repro.data.folders import Folders
from dcasgd_repro.data.images import Batch, Images, stream
from dcasgd_repro.data.split import Classes, Dirichlet, split_of
from dcasgd_repro.errors import BadInput, check_number, check_whole, in_words, is_ours
from dcasgd_repro.models import Network, laid_out

CHUNK = 1000  # images at a time through the network, in an evaluation
_DRAWING = threading.Lock()  # torch has one generator for all threads


class Drawn(NamedTuple):
    """A ``Batch`` whose gradient draws random numbers, from ``seed``."""

    images: Tensor
    labels: Tensor
    seed: Tensor  # int64, on the CPU


@dataclass(frozen=True)
class Quadratic:
    """``f(w) = 1/2 sum_i h_i w_i^2``, whose every trajectory has a closed form.

    ``curvature``  h, its entries; w has as many
    ``start``      every entry of w_0
    ``noise``      standard deviation of Gaussian noise xi on each gradient entry, drawn from
                   (seed, worker, k): a batch's loss is f(w) + xi w, and its gradient h w + xi
    """

    curvature: Sequence[float] = (1.0, 0.1)
    start: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.curvature, Sequence) or not self.curvature:
            raise BadInput("curvature", self.curvature, "give a list of numbers, as [1.0,0.1]")
        for h in self.curvature:
            check_number("curvature", h, -np.inf)
        check_number("start", self.start, -np.inf)
        check_number("noise", self.noise)

    def on(self, device: torch.device, dtype: torch.dtype = torch.float64) -> QuadraticTask:
        """The task on a device, in float64 unless told otherwise."""
        return QuadraticTask(self, device, dtype)


class QuadraticTask:
    """``Quadratic`` on a device; see there."""

    def __init__(self, conf: Quadratic, device: torch.device, dtype: torch.dtype) -> None:
        self.conf = conf
        self.md5: dict[str, str] = {}
        self.h = torch.tensor(list(conf.curvature), dtype=dtype, device=device)

    @property
    def same_loss(self) -> tuple[Any, ...]:
        return tuple(self.conf.curvature), self.h.device, self.h.dtype

    def double(self) -> QuadraticTask:
        return QuadraticTask(self.conf, self.h.device, torch.float64)

    def initial(self, seed: int) -> Tensor:
        return torch.full_like(self.h, self.conf.start)

    def batch(self, worker: int, k: int) -> Tensor:
        """The gradient's noise [P]."""
        if not self.conf.noise:
            return torch.zeros_like(self.h)
        draws = np.random.default_rng([self.conf.seed, worker, k]).standard_normal(len(self.h))
        return torch.as_tensor(self.conf.noise * draws).to(self.h)

    def loss(self, w: Tensor, batch: Tensor) -> Tensor:
        return torch.sum(0.5 * self.h * w * w + batch * w)

    def gradient(self, w: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(w, batch), self.h * w + batch

    def evaluate(self, w: Tensor, sent: Sequence[Tensor]) -> dict[str, float]:
        return {"test_loss": 0.5 * torch.sum(self.h * w * w).item()}


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of a network on labelled images, plus ``weight_decay / 2 ||w||^2``.

    ``model``          a leaf whose ``build()`` makes the network, or a ``functools.partial`` of one
                       that makes it itself, as ``torchvision.models.resnet18``
    ``data``           a leaf whose ``load(device, dtype)`` gives ``Images`` or what is used alike
    ``weight_decay``   belongs to the loss: its gradient is taken where the loss's is, at w_bak
    ``stats_images``   how many training images BatchNorm's statistics are recomputed from
    ``train_images``   how many training images ``train_error`` is measured on
    ``statistics``     BatchNorm's in an evaluation. None (default): those of w. "workers": what a
                       server has that averages its workers' statistics, which lag behind w: the
                       mean over the workers of the means, and of the variances, that each takes at
                       the vector it holds, on its own share of the ``stats_images``. The spread of
                       the workers' means adds nothing to that variance.
    ``split``          None: each epoch's images are dealt anew to the workers. "dirichlet" and
                       "classes": each worker has a part of its own, by ``alpha`` or
                       ``classes_per_worker``, see data/split.py. One worker has all images
    """

    model: Any
    data: Any
    weight_decay: float = 0.0
    stats_images: int = 2000
    train_images: int = 2000
    statistics: str | None = None
    split: str | None = None
    alpha: float | None = None
    classes_per_worker: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, partial):
            object.__setattr__(self, "model", Network(self.model))
        for key, method in (("model", "build"), ("data", "load")):
            if not hasattr(getattr(self, key), method):
                raise BadInput(
                    key, getattr(self, key), "this is a group of keys; set one inside it"
                )
        check_number("weight_decay", self.weight_decay, 0, 1e30, "[]")  # a float32 must hold it
        for key in ("stats_images", "train_images"):
            check_whole(key, getattr(self, key))
        if self.statistics is not None:
            if self.statistics != "workers":
                raise BadInput("statistics", self.statistics, "choose null or workers")
            if self.stats_images < self.data.workers:
                remedy = f"statistics=workers needs an image for each of {self.data.workers}"
                raise BadInput("stats_images", self.stats_images, remedy)
        if self.division is not None and self.statistics is not None:
            remedy = "takes them on images of all kinds, not on a worker's own; leave one out"
            raise BadInput("statistics", self.statistics, remedy)

    @property
    def division(self) -> Dirichlet | Classes | None:
        """How the images are split among the workers; None: anew each epoch."""
        return split_of(self.split, self.alpha, self.classes_per_worker)

    def on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Classifier:
        """The task on a device, its data loaded and verified."""
        images = self.data.load(device, dtype)
        if self.division is not None:
            images.divide(self.division)
        return Classifier(self, images, device, dtype)


class Classifier:
    """``Classification`` on a device.

    Training uses each mini-batch's own BatchNorm statistics. ``evaluate`` recomputes them from a
    fixed pass over un-augmented training images, by default at w, which makes it a function of w
    alone. The paper does not say what its server did; this is our choice, and ``statistics`` has
    another one.
    """

    def __init__(
        self,
        conf: Classification,
        images: Images | Folders,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.conf, self.images = conf, images
        self.md5 = images.md5
        if getattr(conf.model, "classes", images.classes) is None:
            conf = replace(conf, model=replace(conf.model, classes=images.classes))
            self.conf = conf
        if getattr(conf.model, "classes", images.classes) != images.classes:
            raise BadInput(
                "task.model.classes", conf.model.classes, f"the data has {images.classes} classes"
            )
        self.device, self.dtype = device, dtype
        self._take(self._network(seed=0))
        self.evaluated = self._network(seed=0)
        for name, parameter in self.evaluated.named_parameters():
            if not parameter.requires_grad:
                remedy = "is frozen, and w holds every parameter; register it as a buffer"
                raise BadInput("model", name, remedy)
        for norm in _norms(self.evaluated):
            norm.momentum = None  # a plain average over the fixed pass
        for part in self.evaluated.modules():
            if isinstance(part, _NormBase) and not isinstance(part, _BatchNorm):
                part.track_running_stats = False  # InstanceNorm: each image has its own statistics
        self.shapes = [p.shape for p in self.evaluated.parameters()]
        self.sizes = [p.numel() for p in self.evaluated.parameters()]

    def __copy__(self) -> Classifier:
        """A task on the same data with a network of its own, for a thread of its own."""
        twin = object.__new__(Classifier)
        vars(twin).update(vars(self))
        twin._take(copy.deepcopy(self.module))
        return twin

    def double(self) -> Classifier:
        """The task in float64, on the very images that this one sees, rounded as they are."""
        return Classifier(self.conf, self.images, self.device, torch.float64)

    @property
    def same_loss(self) -> tuple[Any, ...]:
        """What the loss depends on beside w and the batch: tasks with equal ones share waves."""
        return self.conf.model, self.conf.weight_decay, self.device, self.dtype

    def initial(self, seed: int) -> Tensor:
        """w_0 [P] as the network's own initialisation draws it on the CPU from ``seed``."""
        return torch.cat([p.detach().reshape(-1) for p in self._network(seed).parameters()])

    def batch(self, worker: int, k: int) -> Batch | Drawn:
        images, labels = self.images.batch(worker, k)
        batch = Batch(images.to(self.dtype), labels)
        if not self.draws:
            return batch
        seed = stream(getattr(self.conf.data, "seed", 0), "gradient", worker, k).integers(2**63)
        return Drawn(*batch, torch.tensor(seed))

    def loss(self, w: Tensor, batch: Batch | Drawn) -> Tensor:
        """Mean loss over the batch at w [P], weight decay included."""
        return self._decayed(self._cross_entropy(w, batch), w)

    def gradient(self, w: Tensor, batch: Batch | Drawn) -> tuple[Tensor, Tensor]:
        """The loss and its gradient [P] at w [P]; weight decay is added as torch.optim.SGD does."""
        leaf = w.detach().requires_grad_()
        loss = self._cross_entropy(leaf, batch)
        if not loss.requires_grad:
            raise self._refused(".forward", "returns what does not depend on the parameters")
        (g,) = torch.autograd.grad(loss, leaf)
        if self.conf.weight_decay:
            g = torch.add(g, w, alpha=self.conf.weight_decay)
        return self._decayed(loss.detach(), w), g

    @torch.no_grad()
    def batch_error(self, w: Tensor, batch: Batch | Drawn) -> float:
        """Error rate in [0, 1] on a mini-batch as it trains: augmented, with its own statistics."""
        wrong = self._logits(w, batch).argmax(1) != batch.labels
        return float(wrong.double().mean())

    def _cross_entropy(self, w: Tensor, batch: Batch | Drawn) -> Tensor:
        return F.cross_entropy(self._logits(w, batch), batch.labels)

    def _logits(self, w: Tensor, batch: Batch | Drawn) -> Tensor:
        if not isinstance(batch, Drawn):
            return self._forward(w, batch.images)
        with _DRAWING, self._own_numbers():
            torch.manual_seed(int(batch.seed))
            return self._forward(w, batch.images)

    def _own_numbers(self) -> contextlib.AbstractContextManager[None]:
        """Leaves torch's generators as they were."""
        own = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices=own)

    @cached_property
    def draws(self) -> bool:
        """Whether the network draws random numbers as it trains: tried, on two images.

        Raises BadInput for a network that does not take them, or has fewer logits than classes.
        """
        images, _ = next(iter(self.images.train_chunks(min(2, self.images.size))))
        cuda = self.device.type == "cuda"

        def state() -> Tensor:
            return torch.cuda.get_rng_state(self.device) if cuda else torch.get_rng_state()

        with _DRAWING, self._own_numbers(), torch.no_grad():
            before = state()
            try:
                self._called(self.module, images.to(self.dtype))
            except (BadInput, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if not is_ours(self.module):  # theirs is told by their own line
                    raise
                remedy = f"does not take images {[*images.shape]}: {in_words(error)}"
                raise BadInput("model", self.conf.model, remedy) from None
            return not torch.equal(before, state())

    def _forward(self, w: Tensor, images: Tensor) -> Tensor:
        # As torch.func.functional_call, its search for tied weights made once.
        parts = self._parts(w)
        for parameters, name, _, k in self._places:
            parameters[name] = parts[k]
        try:
            return self._called(self.module, images)
        finally:
            for parameters, name, own, _ in self._places:
                parameters[name] = own

    def _called(self, module: nn.Module, images: Tensor) -> Tensor:
        """The logits of [N, 3, H, W] images, which are [N, classes] or more. Raises BadInput."""
        logits = module(laid_out(images))
        count, classes = len(images), self.images.classes
        if not isinstance(logits, Tensor):
            said = f"a {type(logits).__name__}"
        elif logits.ndim != 2 or len(logits) != count or logits.shape[1] < classes:
            said = f"shape {tuple(logits.shape)}"
        else:
            return logits
        raise self._refused(".forward", f"returns {said}; make it logits {[count, classes]}")

    def _refused(self, method: str, remedy: str) -> BadInput:
        return BadInput("model", f"{type(self.evaluated).__name__}{method}", remedy)

    def _decayed(self, loss: Tensor, w: Tensor) -> Tensor:
        if not self.conf.weight_decay:
            return loss
        return loss + self.conf.weight_decay / 2 * torch.dot(w, w)

    @torch.no_grad()
    def evaluate(self, w: Tensor, sent: Sequence[Tensor]) -> dict[str, float]:
        """Error rates in [0, 1] and mean cross-entropy at w [P], on un-augmented images.

        ``test_error`` and ``test_loss`` are of the data's validation images, where it keeps some.

        ``sent``: the vectors that the workers hold, [P] each. Read for ``statistics="workers"``
        only; after a push they include the one that it was computed at, so even one worker lags.
        """
        self._take_statistics(w, sent)
        self._put(w)
        test_error, test_loss = self._measure(self.images.test_chunks())
        train_error, _ = self._measure(
            self.images.train_chunks(min(self.conf.train_images, self.images.size))
        )
        return {"test_error": test_error, "test_loss": test_loss, "train_error": train_error}

    def _take_statistics(self, w: Tensor, sent: Sequence[Tensor]) -> None:
        """Leaves ``evaluated`` with BatchNorm statistics, each a plain mean over chunks."""
        count, size = min(self.conf.stats_images, self.images.size), CHUNK
        vectors: Sequence[Tensor] = [w] * -(-count // size)
        if self.conf.statistics == "workers":
            # Equally many chunks of equal size for each worker, so that the mean over chunks is
            # that over workers; the few images left over sit it out.
            share = count // len(sent)
            pieces = -(-share // CHUNK)
            size, vectors = share // pieces, [held for held in sent for _ in range(pieces)]
            count = size * len(vectors)
        self.evaluated.eval()  # dropout stays out: an evaluation draws no numbers
        for norm in _norms(self.evaluated):
            norm.reset_running_stats()
            norm.train()
        chunks = self.images.train_chunks(count, size)
        for vector, (images, _) in zip(vectors, chunks, strict=True):
            self._put(vector)
            self.evaluated(laid_out(images))
        self.evaluated.eval()

    def _put(self, w: Tensor) -> None:
        """Copies w [P] into the network that is evaluated."""
        for parameter, part in zip(self.evaluated.parameters(), self._parts(w), strict=True):
            parameter.copy_(part)

    def _measure(self, chunks: Any) -> tuple[float, float]:
        wrong, loss, count = 0, 0.0, 0
        for images, labels in chunks:
            logits = self._called(self.evaluated, images)
            wrong += int((logits.argmax(1) != labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
        return wrong / count, loss / count

    def _take(self, module: nn.Module) -> None:
        """Trains with this network: a loss puts w's parts in its parameters' places, and back."""
        self.module = module
        for norm in _norms(module):
            norm.track_running_stats = False  # training needs none, so it keeps none
        number = {id(own): k for k, own in enumerate(module.parameters())}
        self._places: list[tuple[dict[str, Any], str, nn.Parameter, int]] = []
        for path, own in module.named_parameters(remove_duplicate=False):  # tied ones too
            owner, _, name = path.rpartition(".")
            place = module.get_submodule(owner)._parameters
            self._places.append((place, name, own, number[id(own)]))

    def _parts(self, w: Tensor) -> list[Tensor]:
        parts = w.split(self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _network(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module: nn.Module = self.conf.model.build()
        if not isinstance(module, nn.Module):
            made = f"returns a {type(module).__name__}; make it an nn.Module"
            raise BadInput("model", f"{type(self.conf.model).__name__}.build", made)
        parameters = dict(module.named_parameters())
        if not parameters:
            raise BadInput("model", type(module).__name__, "has no parameters to train")
        for name, parameter in parameters.items():
            if isinstance(parameter, UninitializedParameter) or parameter.is_meta:
                remedy = "has no values yet; give it its size and a device when it is made"
                raise BadInput("model", f"{type(module).__name__}.{name}", remedy)
        return module.to(device=self.device, dtype=self.dtype)


def _norms(module: nn.Module) -> list[_BatchNorm]:
    """BatchNorm of any dimension."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]
