"""The attention layers and the networks made of them, in a second spelling."""

from __future__ import annotations

import pytest
import torch
from small_networks import build
from torch import Tensor, nn
from torch.nn import functional

from srquant.errors import UserError
from srquant.networks import PlainUSRConfig, RFDNConfig, RLFNConfig, SPANConfig, SRNetwork
from srquant.networks.layers import CentredSigmoid, Grow, ResizeLike, SoftPool, SpatialAttention
from srquant.networks.tracing import trace


def resized(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def conv(network: nn.Module, name: str, x: Tensor, **settings: int) -> Tensor:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return functional.conv2d(x, layer.weight, layer.bias, **settings)


def leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.05)


def test_soft_pooling_weights_by_the_softmax_of_each_window() -> None:
    x = torch.randn(2, 3, 10, 13)
    windows = x.unfold(2, 7, 3).unfold(3, 7, 3).flatten(4)
    assert torch.allclose(SoftPool(7, 3)(x), (windows.softmax(-1) * windows).sum(-1), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 3), (9, 8)])
def test_growing_repeats_the_end_and_only_where_needed(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *size)
    grown = Grow(5)(x)
    assert grown.shape == (1, 2, max(5, size[0]), max(5, size[1]))
    assert torch.equal(grown[..., : size[0], : size[1]], x)
    assert torch.equal(
        grown[..., size[0] :, :], grown[..., size[0] - 1 : size[0], :].expand_as(grown[..., size[0] :, :])
    )


def test_small_leaves() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert torch.equal(CentredSigmoid()(x), x.sigmoid() - 0.5)
    assert torch.equal(ResizeLike()(x, torch.zeros(1, 5, 9, 7)), resized(x, torch.zeros(1, 1, 9, 7)))


def attended(network: nn.Module, name: str, x: Tensor, *, deep: bool) -> Tensor:
    squeezed = conv(network, f"{name}.conv1", x)
    pooled = functional.max_pool2d(conv(network, f"{name}.conv2", squeezed, stride=2), 7, 3)
    if deep:
        pooled = conv(network, f"{name}.conv_max", pooled, padding=1).relu()
        pooled = conv(network, f"{name}.conv3", pooled, padding=1).relu()
    pooled = conv(network, f"{name}.conv3_" if deep else f"{name}.conv3", pooled, padding=1)
    middle = resized(pooled, x) + conv(network, f"{name}.conv_f", squeezed)
    return x * conv(network, f"{name}.conv4", middle).sigmoid()


def rlfn(network: SRNetwork, x: Tensor) -> Tensor:
    shallow = features = conv(network, "conv_1", x, padding=1)
    for block in ("block_1", "block_2"):
        y = features
        for layer in ("c1_r", "c2_r", "c3_r"):
            y = leaky(conv(network, f"{block}.{layer}", y, padding=1))
        features = attended(network, f"{block}.esa", conv(network, f"{block}.c5", y + features), deep=False)
    return conv(network, "upsampler.0", conv(network, "conv_2", features, padding=1) + shallow, padding=1)


def rfdn(network: SRNetwork, x: Tensor) -> Tensor:
    shallow = features = conv(network, "fea_conv", x, padding=1)
    outputs = []
    for block in ("B1", "B2"):
        kept = []
        for step in "123":
            kept.append(leaky(conv(network, f"{block}.c{step}_d", features)))
            features = leaky(conv(network, f"{block}.c{step}_r", features, padding=1) + features)
        kept.append(leaky(conv(network, f"{block}.c4", features, padding=1)))
        features = attended(network, f"{block}.esa", conv(network, f"{block}.c5", torch.cat(kept, 1)), deep=True)
        outputs.append(features)
    fused = conv(network, "LR_conv", leaky(conv(network, "c.0", torch.cat(outputs, 1))), padding=1)
    return conv(network, "upsampler.0", fused + shallow, padding=1)


def span(network: SRNetwork, x: Tensor) -> Tensor:
    mean = torch.tensor([0.4488, 0.4371, 0.4040], dtype=x.dtype).view(3, 1, 1)
    shallow = features = conv(network, "conv_1.eval_conv", (x - mean) * 255, padding=1)
    outputs, first = [], shallow
    for block in ("block_1", "block_2", "block_3"):
        first = functional.silu(conv(network, f"{block}.c1_r.eval_conv", features, padding=1))
        last = functional.silu(conv(network, f"{block}.c2_r.eval_conv", first, padding=1))
        last = conv(network, f"{block}.c3_r.eval_conv", last, padding=1)
        features = (last + features) * (last.sigmoid() - 0.5)
        outputs.append(features)
    joined = torch.cat([shallow, conv(network, "conv_2.eval_conv", features, padding=1), outputs[0], first], 1)
    return conv(network, "upsampler.0", conv(network, "conv_cat", joined), padding=1)


def plainusr(network: SRNetwork, x: Tensor) -> Tensor:
    """In place, as the original does it."""
    config = network.config
    assert isinstance(config, PlainUSRConfig)
    features = conv(network, "head", x, padding=1).clone()
    for block, channels in config.channels().items():
        y = conv(network, f"{block}.body.0", features[:, :channels], padding=1)
        for number in range(1, config.convolutions):
            y = conv(network, f"{block}.body.{2 * number}", leaky(y), padding=1)
        attention = f"{block}.body.{2 * config.convolutions - 1}.body"
        if not config.ultra:
            sampled = conv(network, f"{attention}.0", y)
            weight = functional.avg_pool2d(sampled.exp(), 7, 3)
            sampled = functional.avg_pool2d(sampled.exp() * sampled, 7, 3) / weight
            coarse = conv(network, f"{attention}.2", sampled, stride=2, padding=1)
            y = y * resized(conv(network, f"{attention}.3", coarse, padding=1).sigmoid(), y) * y[:, :1].sigmoid()
        elif block == "blockm":
            y = y * conv(network, f"{attention}.0", y, padding=1).sigmoid() * y[:, :1].sigmoid()
        features[:, :channels] = y
    return conv(network, "tail.0", features, padding=1)


SPELLED = [
    (rlfn, RLFNConfig(scale=2, blocks=2, width=6, middle=5, squeezed=4)),
    (rfdn, RFDNConfig(scale=3, blocks=2, width=7, squeezed=2)),
    (span, SPANConfig(scale=2, blocks=3, width=5, joined=4)),
    (plainusr, PlainUSRConfig(scale=2, width=9, outer=9, middle=4, ultra=True)),
    (plainusr, PlainUSRConfig(scale=2, width=9, outer=8, inner=5, middle=3, squeezed=2)),
    (plainusr, PlainUSRConfig(scale=3, width=6, outer=4, inner=6, middle=5, squeezed=2, convolutions=3)),
]


@pytest.mark.parametrize(("spelled", "config"), SPELLED, ids=[f"{s.__name__}-{i}" for i, (s, _) in enumerate(SPELLED)])
def test_a_network_computes_what_its_paper_says(spelled, config) -> None:
    network = build(spelled.__name__, config).double()
    x = torch.rand(1, 3, 19, 24, dtype=torch.float64) * network.info.peak
    with torch.no_grad():
        wanted = functional.pixel_shuffle(spelled(network, x), config.scale)
        rounding = 1e-3 if spelled is span else 1e-9  # the mean colour is held in float32 and stretched
        assert torch.allclose(network(x), wanted, atol=rounding)
        assert torch.allclose(trace(network)(x), wanted, atol=rounding)


def test_the_pooled_middle_of_an_attention_is_one_node_and_its_surroundings_are_layers() -> None:
    network = build("rlfn", RLFNConfig(scale=2, blocks=1, width=6, middle=5, squeezed=4))
    called = [str(node.target) for node in trace(network).graph.nodes if node.op == "call_module"]
    assert [name.removeprefix("block_1.") for name in called if "esa" in name] == [
        "esa.conv1",
        "esa",
        "esa.conv_f",
        "esa.conv4",
        "esa.sigmoid",
    ]
    assert isinstance(network.get_submodule("block_1.esa"), SpatialAttention)


def test_a_fresh_plainusr_starts_around_nearest_neighbour_enlargement() -> None:
    network = build("plainusr", PlainUSRConfig(scale=2, width=4, outer=4, middle=2, ultra=True))
    head, tail = network.get_submodule("head"), network.get_submodule("tail.0")
    with torch.no_grad():
        for layer in (head, tail):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            layer.weight.copy_(layer.weight.round())
            layer.bias.zero_()
        x = torch.rand(1, 3, 5, 6)
        assert torch.allclose(network(x), functional.interpolate(x, scale_factor=2, mode="nearest"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlainUSRConfig(scale=2, width=8, outer=9, inner=4, middle=4), "outer is 9; allowed: at most width 8"),
        (lambda: PlainUSRConfig(scale=2, width=8, outer=8, inner=4, middle=1), "middle is 1; allowed: 2"),
        (lambda: RFDNConfig(scale=2, width=1), "width is 1; allowed: 2"),
        (lambda: SPANConfig(scale=8), "scale is 8; allowed: 2, 3, 4"),
    ],
)
def test_impossible_attention_networks_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
