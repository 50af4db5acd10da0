"""Key names of public ports, and what the small mobile networks compute, in a second spelling."""

from __future__ import annotations

import pytest
import torch
from small_networks import build
from torch.nn import functional

from srquant.errors import UserError
from srquant.networks import (
    ECBSR,
    ESPCN,
    FSRCNN,
    SESR,
    ECBSRConfig,
    ESPCNConfig,
    FSRCNNConfig,
    QuickSRNet,
    QuickSRNetConfig,
    SESRConfig,
)


def test_the_single_bias_of_the_fsrcnn_port_is_added_to_every_pixel() -> None:
    network = build("fsrcnn", FSRCNNConfig(scale=3, width=6, shrunk=3, layers=2))
    state = network.state_dict()
    del state["tail.bias"]
    port = state | {"bias": torch.tensor([0.25])}
    assert FSRCNN.recognise(port) == network.config
    loaded = FSRCNN(FSRCNNConfig(scale=3, width=6, shrunk=3, layers=2)).eval()
    loaded.load_state_dict(FSRCNN.entries(port))
    x = torch.rand(1, 1, 5, 6)
    with torch.no_grad():
        features = functional.conv2d(network.get_submodule("body")(x), state["tail.weight"])
        assert torch.allclose(loaded(x), functional.pixel_shuffle(features, 3) + 0.25, atol=1e-6)
    with pytest.raises(UserError, match=r"fsrcnn weights: 'bias' has shape \[2\], expected \[1\]"):
        FSRCNN.recognise(state | {"bias": torch.zeros(2)})


def test_espcn_ends_in_tanh() -> None:
    network = build("espcn", ESPCNConfig(scale=2, width=4, shrunk=3))
    assert isinstance(network, ESPCN)
    x = torch.rand(1, 1, 6, 5)
    with torch.no_grad():
        features = functional.relu(network.conv2(functional.relu(network.conv1(x))))
        assert torch.equal(network(x), torch.tanh(functional.pixel_shuffle(network.conv3(features), 2)))


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("scale", [2, 3])
def test_quicksrnet_starts_near_nearest_enlargement(scale: int, anchored: bool) -> None:
    torch.manual_seed(0)
    network = QuickSRNet(QuickSRNetConfig(scale=scale, width=8, layers=2, anchored=anchored))
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m is not network.anchor]
    for convolution in convolutions:
        assert convolution.bias is not None
        torch.nn.init.zeros_(convolution.bias)
        convolution.weight.data = convolution.weight.data.round()  # the identity without the small random weights
    x = torch.rand(1, 3, 5, 6)
    with torch.no_grad():
        assert torch.equal(network(x), functional.interpolate(x, scale_factor=scale, mode="nearest"))


def test_quicksrnet_reads_the_anchor_of_the_port() -> None:
    network = build("quicksrnet", QuickSRNetConfig(scale=2, width=4, layers=2, anchored=True))
    port = {key.replace("anchor.", "anchor.net."): tensor for key, tensor in network.state_dict().items()}
    assert "anchor.net.weight" in port
    assert QuickSRNet.recognise(port) == network.config
    assert QuickSRNet.entries(port).keys() == network.state_dict().keys()


def port_anchor(colours: int, scale: int) -> dict[str, torch.Tensor]:
    weight = torch.eye(colours).repeat_interleave(scale**2, dim=0)[..., None, None]
    return {"anchor.net.weight": weight, "anchor.net.bias": torch.zeros(colours * scale**2)}


@pytest.mark.parametrize("collapsed", [False, True])
def test_sesr_reads_the_keys_of_the_port(collapsed: bool) -> None:
    config = SESRConfig(scale=2, blocks=2, width=4, colours=3, prelu=False, expanded=16)
    network = build("sesr", config)
    network = network.collapsed() if collapsed else network
    state = network.state_dict()
    if collapsed:  # the port keeps the collapsed convolution where the expanding one was
        state = {
            f"{key.rpartition('.')[0]}.conv_expand.{key.rpartition('.')[2]}": tensor for key, tensor in state.items()
        }
    port = state | port_anchor(3, 2)
    assert SESR.recognise(port) == network.config
    entries = SESR.entries(port)
    assert all(torch.equal(entries[key], tensor) for key, tensor in network.state_dict().items())
    for key, wrong in (("anchor.net.weight", torch.ones(12, 3, 1, 1)), ("anchor.net.bias", torch.ones(12))):
        with pytest.raises(UserError, match=f"'{key}' is not nearest-neighbour enlargement"):
            SESR.recognise(port | {key: wrong})


def test_sesr_for_luma_sees_the_picture_less_a_half_and_clips() -> None:
    network = build("sesr", SESRConfig(scale=2, blocks=1, width=4, prelu=True, collapsed=True))
    assert isinstance(network, SESR)
    x = torch.rand(1, 1, 6, 7)
    with torch.no_grad():
        first = network.conv_first(x - 0.5)
        inside = network.activations[0](network.residual_block[0](first))
        difference = functional.pixel_shuffle(network.conv_last(inside + first), 2)
        wanted = functional.interpolate(x, scale_factor=2, mode="nearest") + difference
        assert torch.allclose(network(x), wanted.clamp(0, 1), atol=1e-6)
        assert bool((wanted > 1).any())
    with pytest.raises(UserError, match=r"colours is 2; allowed: 1 \(luma\), 3 \(RGB\)"):
        SESRConfig(scale=2, colours=2)


def test_both_forms_of_ecbsr_are_told_by_their_keys() -> None:
    network = build("ecbsr", ECBSRConfig(scale=2, blocks=2, width=4))
    state = network.state_dict()
    assert {"backbone.1.conv1x1_3x3.k1", "backbone.0.conv1x1_sbx.mask", "backbone.2.conv1x1_lpl.b0"} <= state.keys()
    assert ECBSR.recognise(state) == network.config
    plain = network.collapsed().state_dict()
    assert set(plain) == {f"backbone.{i}.conv3x3.{part}" for i in range(4) for part in ("weight", "bias")} | {
        f"backbone.{i}.act.weight" for i in range(3)
    }
    assert ECBSR.recognise(plain) == ECBSRConfig(scale=2, blocks=2, width=4, collapsed=True)
