"""ResNets for 32x32 against closed forms, hand-made tensors and the paper's table of sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dcasgd_repro.errors import BadInput
from dcasgd_repro.models import ResNet, ResNet50


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the mean loss as one vector."""
    loss = nn.functional.cross_entropy(model(x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("depth", [8, 20, 32, 56])
def test_parameter_count_in_closed_form(depth: int, width: int, classes: int, norm: str) -> None:
    n, w = (depth - 2) // 6, width
    # Weights of all 3x3 convolutions: 27w for the image; a stage of c channels has 2n of 9c^2,
    # but the first of stages 2 and 3 reads c/2 channels. c = w, 2w, 4w.
    convolutions = 27 * w + 9 * w**2 * (2 * n * (1 + 4 + 16) - 2 - 8)
    channels = w * (1 + 2 * n * 7)  # summed over convolutions
    per_channel = 2 if norm == "batch" else 1  # scale and shift, or a bias
    expected = convolutions + per_channel * channels + 4 * w * classes + classes
    assert size(ResNet(depth, width, classes, norm).build()) == expected


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_sizes_of_the_paper(depth: int, millions: float) -> None:
    """He et al. 2016, table 6."""
    assert round(size(ResNet(depth).build()) / 1e6, 2) == millions


def test_resnet20_is_the_default() -> None:
    assert size(ResNet().build()) == 269_722
    assert ResNet() == ResNet(depth=20, width=16, classes=10, norm="batch")


def test_depth_counts_the_layers_with_weights() -> None:
    layers = [m for m in ResNet(32).build().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 32


def test_resnet50() -> None:
    model = ResNet50().build()
    assert size(model) == 25_557_032
    assert ResNet50() == ResNet50(classes=1000)
    assert ResNet50(classes=7).build().fc.out_features == 7


# --- the function -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_shapes(norm: str) -> None:
    model = ResNet(8, 4, 7, norm).build()
    shapes = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _x, y: shapes.append(tuple(y.shape)))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert shapes == [(2, 4, 32, 32), (2, 8, 16, 16), (2, 16, 8, 8)]


def test_shortcut_is_strided_and_padded_with_zero_channels() -> None:
    x = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    first_of_stage = ResNet(8, 2).build().blocks[1]
    expected = torch.tensor(
        [[[[0, 2], [8, 10]], [[16, 18], [24, 26]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]]
    )
    assert torch.equal(first_of_stage.shortcut(x), expected.float())


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_block_with_an_idle_branch_is_its_shortcut(norm: str) -> None:
    blocks = ResNet(14, 2, norm=norm).build().blocks
    x = torch.randn(2, 2, 8, 8)
    strided = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 2, 4, 4)], dim=1)
    for block, shortcut in ((blocks[1], x), (blocks[2], strided)):
        nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(x), shortcut.relu())


def test_a_block_by_hand() -> None:
    """conv - norm - relu - conv - norm, the shortcut added, relu; in torch's functions."""
    block = ResNet(8, 2).build().blocks[1].double()
    for norm in (block.norm1, block.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)

    def normalised(z: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        mean = z.mean(dim=(0, 2, 3), keepdim=True)
        variance = (z - mean).square().mean(dim=(0, 2, 3), keepdim=True)
        scale, shift = (v[:, None, None] for v in (norm.weight, norm.bias))
        return (z - mean) / (variance + 1e-5).sqrt() * scale + shift

    conv = nn.functional.conv2d
    y = normalised(conv(x, block.conv1.weight, stride=2, padding=1), block.norm1).relu()
    y = normalised(conv(y, block.conv2.weight, padding=1), block.norm2)
    shortcut = torch.cat([x[:, :, ::2, ::2], torch.zeros(3, 2, 3, 3)], dim=1)
    torch.testing.assert_close(block(x), (shortcut + y).relu())


def test_head_is_the_mean_over_pixels_and_a_linear_layer() -> None:
    model = ResNet(8, 4, norm="none").build()
    model.blocks = nn.Identity()
    model.linear = nn.Linear(4, 10)
    x = torch.randn(2, 3, 32, 32)
    pixels = model.conv(x).relu().flatten(2)
    torch.testing.assert_close(model(x), model.linear(pixels.sum(2) / 1024))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_channels_last_gives_the_same_numbers(norm: str) -> None:
    model = ResNet(8, 8, norm=norm).build()
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    logits, g = model(x), gradient(model, x, y)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient(model, x, y), g, atol=1e-4, rtol=1e-3)


# --- initial weights --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_seed_decides_the_initial_weights(norm: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(ResNet(8, 4, norm=norm).build().parameters())

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_convolutions_are_he_normal_with_fan_out(norm: str) -> None:
    model = ResNet(20, norm=norm).build()
    convolutions = {k: m for k, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convolutions) == 19
    for name, conv in convolutions.items():
        std = math.sqrt(2 / (9 * conv.out_channels))
        if norm == "none" and name.endswith("conv2"):
            std /= 3  # 1 / sqrt(9 blocks)
        weights = conv.weight.detach() / std
        error = 1 / math.sqrt(2 * weights.numel())
        assert weights.std().item() == pytest.approx(1, abs=5 * error)
        assert weights.abs().max() > 2  # a uniform law of this variance ends at sqrt(3)
        assert weights.mean().item() == pytest.approx(0, abs=5 * weights.numel() ** -0.5)
        assert (conv.bias is None) if norm == "batch" else (not conv.bias.any())
    assert not model.linear.bias.any()


@pytest.mark.parametrize("depth", [8, 56])
def test_without_norm_the_activations_stay_bounded_at_any_depth(depth: int) -> None:
    model = ResNet(depth, norm="none").build()
    x = model.conv(torch.randn(8, 3, 32, 32)).relu()
    growth = model.blocks(x).square().mean() / x.square().mean()
    assert 0.05 < growth.item() < math.e


# --- coupling between samples -----------------------------------------------------------------


@pytest.mark.parametrize(("norm", "layers"), [("batch", 19), ("none", 0)])
def test_batch_norms(norm: str, layers: int) -> None:
    norms = [m for m in ResNet(20, norm=norm).build().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == layers


@pytest.mark.parametrize(("norm", "independent"), [("batch", False), ("none", True)])
def test_only_without_norm_samples_are_independent(norm: str, independent: bool) -> None:
    model = ResNet(8, 4, norm=norm).build().double()
    x, y = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.arange(6)
    alone = torch.cat([model(x[k : k + 1]) for k in range(6)])
    assert torch.allclose(model(x), alone, atol=1e-12) is independent
    halves = (gradient(model, x[:3], y[:3]) + gradient(model, x[3:], y[3:])) / 2
    assert torch.allclose(gradient(model, x, y), halves, atol=1e-12, rtol=1e-9) is independent


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("depth", value) for value in (2, 0, -4, 18, 21, 20.0, "20", True, None)),
        *(("width", value) for value in (0, -1, 16.0, "16", True, None)),
        *(("classes", value) for value in (1, 0, -1, 10.0, "10", True)),
        *(("norm", value) for value in ("Batch", "group", "", None, True)),
    ],
)
def test_bad_input_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(BadInput, match=f"^{key}={value}: (give|choose) ") as refusal:
        ResNet(**{key: value})
    assert (refusal.value.key, refusal.value.value) == (key, value)


@pytest.mark.parametrize("value", [1, 0, 10.0, "10", None])
def test_bad_classes_of_resnet50_are_refused(value: object) -> None:
    with pytest.raises(BadInput, match=f"^classes={value}: give "):
        ResNet50(classes=value)
