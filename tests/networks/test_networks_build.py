from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import IDS, SMALL, build

from srquant.errors import UserError
from srquant.networks import (
    EDSR,
    NETWORKS,
    RDN,
    ABPNConfig,
    EDSRConfig,
    IMDNConfig,
    NetworkConfig,
    RDNConfig,
    SRResNetConfig,
    XLSRConfig,
)
from srquant.networks.layers import Anchor, ChannelAffine, ContrastAttention

LUMA_ONLY = ("espcn", "fsrcnn", "ecbsr")


@pytest.mark.parametrize(("name", "config"), SMALL, ids=IDS)
def test_every_network_enlarges_by_its_scale(name: str, config: NetworkConfig) -> None:
    network = build(name, config)
    assert NETWORKS[name] is type(network)
    channels = getattr(config, "colours", 1 if name in LUMA_ONLY else 3)
    assert (network.info.name, network.info.scale, network.info.channels) == (name, config.scale, channels)
    sr = network(torch.rand(2, channels, 5, 7) * network.info.peak)
    assert sr.shape == (2, channels, 5 * config.scale, 7 * config.scale)
    assert torch.isfinite(sr).all()


@pytest.mark.parametrize(("name", "config"), SMALL, ids=IDS)
def test_every_config_round_trips_through_json(name: str, config: NetworkConfig) -> None:
    assert type(config).from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert NETWORKS[name].config_type is type(config)


@pytest.mark.parametrize(("name", "config"), SMALL, ids=IDS)
def test_every_network_recognises_its_own_state_and_no_other(name: str, config: NetworkConfig) -> None:
    network = build(name, config)
    for other, kind in NETWORKS.items():
        found = kind.recognise(network.state_dict())
        if other != name:
            assert found is None
        elif isinstance(config, EDSRConfig):  # the keys do not tell the normalisation
            assert found == EDSRConfig(scale=config.scale, blocks=config.blocks, width=config.width)
        else:
            assert found == config


@settings(deadline=None)
@given(blocks=st.integers(1, 12), width=st.integers(1, 9), scale=st.sampled_from([2, 3, 4, 8]))
def test_edsr_of_any_size_is_recognised(blocks: int, width: int, scale: int) -> None:
    config = EDSRConfig(scale=scale, blocks=blocks, width=width)
    with torch.device("meta"):
        assert EDSR.recognise(EDSR(config).state_dict()) == config


@settings(deadline=None)
@given(
    blocks=st.integers(1, 4),
    layers=st.integers(1, 4),
    growth=st.integers(1, 5),
    width=st.integers(1, 5),
    scale=st.sampled_from([2, 3, 4]),
)
def test_rdn_of_any_size_is_recognised(blocks: int, layers: int, growth: int, width: int, scale: int) -> None:
    config = RDNConfig(scale=scale, blocks=blocks, layers=layers, growth=growth, width=width)
    with torch.device("meta"):
        assert RDN.recognise(RDN(config).state_dict()) == config


def test_wide_edsr_is_read_as_the_official_large_model() -> None:
    with torch.device("meta"):
        state = EDSR(EDSRConfig(scale=2, blocks=2, width=256)).state_dict()
    found = EDSR.recognise(state)
    assert found is not None
    assert found.res_scale == 0.1


def official_state(config: EDSRConfig) -> dict[str, torch.Tensor]:
    mean = torch.tensor(config.mean)
    identity = torch.eye(3).view(3, 3, 1, 1)
    shifts = {"sub_mean.weight": identity, "sub_mean.bias": -mean}
    shifts |= {"add_mean.weight": identity.clone(), "add_mean.bias": mean}
    return build("edsr", config).state_dict() | shifts


def test_official_edsr_takes_its_mean_from_the_file() -> None:
    config = replace(EDSRConfig.official(2, blocks=2, width=4), mean=(100.0, 110.5, 120.25))
    state = official_state(config)
    assert EDSR.recognise(state) == config
    unit = replace(config, mean=(0.25, 0.5, 0.75), peak=1.0)
    assert EDSR.recognise(official_state(unit)) == unit
    x = torch.rand(1, 3, 4, 4) * 255
    network = build("edsr", config)
    mean = torch.tensor(config.mean).view(3, 1, 1)
    features = network.get_submodule("head")(x - mean)
    expected = network.get_submodule("tail")(network.get_submodule("body")(features) + features) + mean
    assert torch.allclose(network(x), expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sub_mean.weight", torch.eye(3).view(3, 3, 1, 1) / 0.5, "not the identity"),
        ("add_mean.weight", torch.ones(3), "expected \\[3, 3, 1, 1\\]"),
        ("add_mean.bias", torch.ones(3), "not the negative"),
        ("sub_mean.bias", torch.ones(1), "expected \\[3\\]"),
        ("sub_mean.bias", None, "'sub_mean.bias' is missing"),
        ("body.1.body.2.bias", None, "lack the key 'body.1.body.2.bias'$"),
        ("body.1.body.2.bias", torch.ones(5), "shape \\[5\\], expected \\[4\\]"),
        ("extra", torch.ones(5), "unexpected key 'extra'"),
        ("head.0.weight", torch.ones(5), "expected a convolution"),
        ("head.0.weight", torch.ones(4, 1, 3, 3), "shape \\[4, 1, 3, 3\\], expected \\[4, 3, 3, 3\\]"),
        ("tail.0.0.weight", torch.ones(20, 4, 3, 3), "20 outputs, expected 4 times 4, 9, 16 or 64"),
        ("tail.0.0.weight", torch.ones(100, 4, 3, 3), "scale is 5; allowed: 2, 3, 4, 8"),
        ("tail.0.0.weight", torch.ones(400, 4, 3, 3), "400 outputs"),
        ("body.900.body.0.weight", torch.ones(4, 4, 3, 3), "and \\d+ more"),
        ("tail.0.998.weight", torch.ones(4, 4, 3, 3), "allowed: 2, 3, 4, 8"),
    ],
)
def test_edsr_that_does_not_fit_names_the_key(key: str, value: torch.Tensor | None, message: str) -> None:
    state = official_state(EDSRConfig.official(2, blocks=2, width=4))
    state.pop(key, None)
    if value is not None:
        state[key] = value
    with pytest.raises(UserError, match=message) as error:
        EDSR.recognise(state)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "config"), SMALL, ids=IDS)
def test_a_missing_or_misshapen_entry_is_an_error_or_another_family(name: str, config: NetworkConfig) -> None:
    state = build(name, config).state_dict()
    for key in state:
        for wrong in (None, torch.zeros(2, 2, 2, 2, 2)):
            broken = {k: v for k, v in state.items() if k != key} | ({} if wrong is None else {key: wrong})
            try:
                assert NETWORKS[name].recognise(broken) is None or name == "abpn"
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDSRConfig(scale=5), "scale is 5; allowed: 2, 3, 4, 8"),
        (lambda: SRResNetConfig(scale=3), "allowed: 2, 4, 8"),
        (lambda: RDNConfig(scale=2, blocks=0), "blocks is 0; allowed: 1..1024"),
        (lambda: EDSRConfig(scale=2, width=5000), "width is 5000"),
        (lambda: EDSRConfig(scale=2, gain=float("nan")), "gain is nan"),
        (lambda: EDSRConfig(scale=2, mean=(1.0, float("inf"), 1.0)), "mean is"),
        (lambda: EDSRConfig.from_dict({"scale": 2, "gain": 10**400}), "EDSRConfig.gain is 1000"),
        (lambda: EDSRConfig.from_dict({"scale": 10**400}), "EDSRConfig.scale is 1000"),
        (lambda: RDNConfig(scale=2, blocks=100, layers=100), "blocks \\* layers is 10000"),
        (lambda: IMDNConfig(scale=2, width=10), "multiples of 4"),
        (lambda: IMDNConfig(scale=2, width=8), "width is 8; allowed: 16"),
        (lambda: XLSRConfig(scale=3, width=30), "multiples of 4"),
        (lambda: ABPNConfig(scale=3, layers=2), "layers is 2; allowed: 3"),
        (lambda: EDSRConfig.from_dict({"scale": 2, "blcks": 3}), "did you mean 'blocks'"),
        (lambda: EDSRConfig.from_dict({"blocks": 3}), "lacks the key 'scale'"),
        (lambda: EDSRConfig.from_dict({"scale": "2"}), "EDSRConfig.scale is '2'; expected int"),
        (lambda: EDSRConfig.from_dict({"scale": True}), "expected int"),
        (lambda: EDSRConfig.from_dict({"scale": 2, "mean": [1, 2]}), "expected tuple"),
        (lambda: SRResNetConfig.from_dict({"scale": 2, "shared_slope": 1}), "expected bool"),
    ],
)
def test_impossible_configs_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_anchor_is_nearest_neighbour_enlargement() -> None:
    x = torch.rand(2, 3, 4, 5)
    assert Anchor(2)(x)[:, :4].equal(x[:, [0, 0, 1, 1]])
    shuffled = torch.nn.functional.pixel_shuffle(Anchor(9)(x), 3)
    assert shuffled.equal(torch.nn.functional.interpolate(x, scale_factor=3, mode="nearest"))


def test_channel_affine_is_per_channel_and_leaves_no_state() -> None:
    layer = ChannelAffine([1.0, 2.0], [3.0, 4.0])
    assert layer(torch.ones(1, 2, 1, 1)).flatten().tolist() == [4.0, 6.0]
    assert not layer.state_dict()
    with pytest.raises(ValueError, match="2 scales, but 1 shifts"):
        ChannelAffine([1.0, 2.0], [3.0])


def test_contrast_attention_matches_its_definition_and_has_finite_gradients_on_flat_maps() -> None:
    layer = ContrastAttention(8, 4)
    x = torch.randn(2, 8, 6, 5)
    pooled = x.mean((2, 3), keepdim=True) + x.std((2, 3), correction=0, keepdim=True)
    attention = layer(x)
    assert attention.shape == (2, 8, 1, 1)
    assert torch.allclose(attention, layer.conv_du(pooled), atol=1e-6)
    flat = torch.full((1, 8, 4, 4), 0.5, requires_grad=True)
    layer(flat).sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()
