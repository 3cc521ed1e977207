"""The paper's networks: ResNets for 32x32 images, and torchvision's ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcasgd_repro.errors import BadInput, check_choice, check_whole, in_words


@dataclass(frozen=True)
class ResNet:
    """ResNet for 32x32 images, [N, 3, 32, 32] -> logits [N, classes], depth = 6n + 2.

    A 3x3 convolution, three stages of n two-convolution blocks with ``width``, 2 ``width`` and 4
    ``width`` channels (the second and third stage halve the image), global average pooling, one
    linear layer. Shortcuts are parameter-free (option A).

    ``build`` draws initial weights from torch's global generator: convolutions He-normal with
    fan-out, N(0, 2 / (9 * channels out)); the linear layer torch's default with a zero bias. Seed
    the generator first.

    ``norm="none"`` leaves BatchNorm out, so that samples do not see each other and the mean of M
    gradients is the gradient of the joined batch. Convolutions then have a (zero) bias, and the
    last one of each block is scaled by 1 / sqrt(3n): the expected square of an activation grows at
    most by a factor e over all blocks, instead of 2^(3n).

    ``classes=None`` leaves their number to the data, see ``tasks.Classifier``.

    Raises ``BadInput``. Source: He et al. 2016 (arXiv 1512.03385), section 4.2; initial weights as
    in He et al. 2015 (arXiv 1502.01852), eq. 15.
    """

    depth: int = 20
    width: int = 16
    classes: int | None = 10
    norm: str = "batch"

    def __post_init__(self) -> None:
        check_whole("depth", self.depth, 8)
        if self.depth % 6 != 2:
            raise BadInput("depth", self.depth, "give 6n + 2 with n >= 1: 8, 20, 32, 44, 56, 110")
        check_whole("width", self.width)
        if self.classes is not None:
            check_whole("classes", self.classes, 2)
        check_choice("norm", self.norm, ("batch", "none"))

    def __str__(self) -> str:
        return f"ResNet-{self.depth} width {self.width}"

    def build(self) -> nn.Module:
        if self.classes is None:
            raise BadInput("classes", None, "a number is needed where no task knows the data's")
        return _SmallResNet(self, self.classes)


@dataclass(frozen=True)
class ResNet50:
    """Torchvision's ResNet-50 without trained weights, [N, 3, H, W] -> logits [N, classes].

    ``build`` draws initial weights from torch's global generator. Raises ``BadInput``.
    """

    classes: int = 1000

    def __post_init__(self) -> None:
        check_whole("classes", self.classes, 2)

    def __str__(self) -> str:
        return "ResNet-50"

    def build(self) -> nn.Module:
        from torchvision import models  # slow to import, and only ImageNet needs it

        network: nn.Module = models.resnet50(
            weights=None, num_classes=self.classes, norm_layer=BatchNorm
        )
        return network


@dataclass(frozen=True)
class Network:
    """A network that a class or function of someone else's makes: ``build`` calls it."""

    make: Callable[[], nn.Module]

    def __str__(self) -> str:
        made = self.make.func if isinstance(self.make, partial) else self.make
        return str(getattr(made, "__name__", made))

    def build(self) -> nn.Module:
        try:
            network = self.make()
        except Exception as error:  # whatever their code raises
            raise BadInput("model", self, in_words(error)) from None
        if not isinstance(network, nn.Module):
            remedy = f"makes a {type(network).__name__}; give what makes an nn.Module"
            raise BadInput("model", self, remedy)
        return network


class Kernels(NamedTuple):
    """What CUDA leaves open of a network's computation; the CPU has no choice."""

    channels_last: bool  # images in memory as [N, H, W, C], as the data gives them; else copied
    cudnn_norm: bool  # cuDNN's batch norm, which torch has not for bfloat16; else torch's own


FORCED: Kernels | None = None  # set by a measurement of the others


def kernels() -> Kernels:
    """The choice, by the precision in force. It stands here alone; no GPU has compared them yet.

    Convolutions in strict float32 want NCHW and would transpose around every layer; those of the
    tensor cores, for TF32 and bfloat16, want NHWC. cuDNN's persistent batch norm is known to stall
    beside other kernels, as in a graph with parallel streams.
    """
    if FORCED is not None:
        return FORCED
    tensor_cores = torch.is_autocast_enabled("cuda") or torch.backends.cudnn.allow_tf32
    return Kernels(channels_last=tensor_cores, cudnn_norm=False)


def laid_out(images: Tensor) -> Tensor:
    """Images [N, C, H, W], channels last in memory, as the network takes them on their device."""
    if images.device.type != "cuda" or kernels().channels_last:
        return images
    return images.contiguous()


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, on CUDA by the kernels that are chosen."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda" or kernels().cudnn_norm:
            return super().forward(x)
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return super().forward(x)
        finally:
            torch.backends.cudnn.enabled = before


class _Block(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), [N, C, H, W] -> [N, C', H/s, W/s]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.stride, self.added_channels = stride, channels_out - channels_in
        self.conv1 = _conv(channels_in, channels_out, stride, norm)
        self.norm1 = _norm(channels_out, norm)
        self.conv2 = _conv(channels_out, channels_out, 1, norm)
        self.norm2 = _norm(channels_out, norm)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every stride-th pixel; zeros for the added channels, after the others."""
        if self.stride == 1:
            return x
        strided = x[:, :, :: self.stride, :: self.stride]
        return F.pad(strided, (0, 0, 0, 0, 0, self.added_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class _SmallResNet(nn.Module):
    def __init__(self, config: ResNet, classes: int) -> None:
        super().__init__()
        self.conv = _conv(3, config.width, 1, config.norm)
        self.norm = _norm(config.width, config.norm)
        n, channels, blocks = (config.depth - 2) // 6, config.width, []
        for stage in range(3):
            for i in range(n):
                halves = stage > 0 and i == 0
                channels_in = channels // 2 if halves else channels
                blocks.append(_Block(channels_in, channels, 2 if halves else 1, config.norm))
            channels *= 2
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(4 * config.width, classes)
        nn.init.zeros_(self.linear.bias)
        if config.norm == "none":
            for block in blocks:
                block.conv2.weight.data.mul_(len(blocks) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        logits: Tensor = self.linear(self.blocks(x).mean(dim=(2, 3)))
        return logits


def _conv(channels_in: int, channels_out: int, stride: int, norm: str) -> nn.Conv2d:
    # BatchNorm has its own shift, which makes a bias before it idle.
    bias = norm == "none"
    conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _norm(channels: int, norm: str) -> nn.Module:
    return BatchNorm(channels) if norm == "batch" else nn.Identity()
