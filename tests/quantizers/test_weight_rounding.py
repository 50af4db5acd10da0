from __future__ import annotations

import itertools

import pytest
import torch
from small_quantized import float_network, noise, tensor
from torch import Tensor, nn

from srquant.config import QuantizationConfig
from srquant.quantizers import QuantizedNetwork
from srquant.quantizers.folding import fold
from srquant.quantizers.weight_rounding import PatchMoments, Sample, fit_rows, round_rows, round_weights


def alike(count: int, width: int, seed: int = 0) -> Tensor:
    """Patches whose values move together, as pixels do, with a 1 at the end; float64 [count, width+1]."""
    random = torch.Generator().manual_seed(seed)
    common = 10 + 3 * torch.randn(count, 1, generator=random)
    values = common + 0.3 * torch.randn(count, width, generator=random)
    return torch.cat([values, torch.ones(count, 1)], 1).double()


def error(weight: Tensor, codes: Tensor, shift: Tensor, patches: Tensor) -> Tensor:
    """Mean square of what codes and shift make wrong, [O]."""
    wrong = torch.cat([weight - codes, -shift[:, None]], 1)
    return (wrong @ patches.T).square().mean(1)


def test_where_patches_have_nothing_in_common_every_weight_goes_to_the_nearest_code() -> None:
    weight = torch.randn(5, 9, generator=torch.Generator().manual_seed(1)).double() * 20
    codes, shift = round_rows(weight, torch.eye(10).double(), 127)
    assert torch.equal(codes, weight.round())
    assert shift.abs().max() == 0


def test_errors_cancel_on_patches_whose_values_move_together() -> None:
    weight = torch.randn(6, 18, generator=torch.Generator().manual_seed(2)).double() * 3
    patches = alike(2000, 18)
    codes, shift = round_rows(weight, patches.T @ patches / len(patches), 127)
    nearest = error(weight, weight.round(), torch.zeros(6).double(), patches)
    assert torch.equal(codes, codes.round())
    assert (error(weight, codes, shift, patches) < 0.2 * nearest).all()
    fresh = alike(2000, 18, seed=7)
    assert (error(weight, codes, shift, fresh) < 0.2 * error(weight, weight.round(), 0 * shift, fresh)).all()


def test_few_weights_come_near_the_best_codes_there_are() -> None:
    weight = torch.tensor([[0.4, -1.3, 2.45, 0.55]]).double()
    patches = alike(500, 4)
    squares = patches.T @ patches / len(patches)
    codes, shift = round_rows(weight, squares, 7)
    best = min(
        float(error(weight, c, ((weight - c) @ squares[:4, 4:]).flatten(), patches))
        for steps in itertools.product((-1, 0, 1), repeat=4)
        for c in [weight.floor() + torch.tensor([steps]).double()]
    )
    assert float(error(weight, codes, shift, patches)) < 2 * best


def test_codes_stay_on_their_grid() -> None:
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(3)).double() * 4
    patches = alike(300, 12)
    codes, _ = round_rows(weight, patches.T @ patches / len(patches), 1)
    assert set(codes.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_moments_are_those_of_the_patches() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1)
    moments = PatchMoments(conv)
    picture = torch.stack([torch.full((40, 40), 2.0), torch.full((40, 40), -1.0)])[None]
    moments.see(picture, picture)
    moments.see(picture, picture)
    (squares,), (errors,) = moments.squares, moments.errors
    inner = torch.cat([torch.full((9,), 2.0), torch.full((9,), -1.0), torch.ones(1)]).double()
    assert squares[-1, -1] == 2
    assert torch.allclose(squares / 2, torch.outer(inner, inner), atol=0.5)  # the padding is zero
    assert not errors.any()


def test_of_a_picture_with_a_margin_the_middle_alone_is_seen() -> None:
    picture = torch.rand(1, 1, 12, 14, generator=torch.Generator().manual_seed(4))
    picture[..., 4:8, 5:9] = 3.0
    moments = PatchMoments(nn.Conv2d(1, 1, 3, padding=1))
    moments.see(picture, picture + 1, 0.25, margin=0.42)  # the middle 2x2 of 12x14, whose patches are all 3
    inner = torch.cat([torch.full((9,), 3.0), torch.ones(1)]).double()
    beyond = torch.cat([torch.ones(9), torch.zeros(1)]).double()
    assert torch.allclose(moments.squares[0], 0.25 * torch.outer(inner, inner))
    assert torch.allclose(moments.errors[0], 0.25 * torch.outer(beyond, inner))


def test_weights_are_fitted_to_what_is_read_in_place_of_what_is_meant() -> None:
    meant = alike(3000, 6)
    read = torch.cat([0.5 * meant[:, :6] + 4, torch.ones(3000, 1)], 1)
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(5)).double()
    squares, errors = read.T @ read / 3000, (meant - read).T @ read / 3000
    fitted, moved = fit_rows(weight, squares, errors)
    wanted, plain = meant[:, :6] @ weight.T, read[:, :6] @ weight.T
    found = read[:, :6] @ fitted.T + moved
    assert (found - wanted).square().mean() < 1e-3 * (plain - wanted).square().mean()
    same, still = fit_rows(weight, squares, 0 * errors)
    assert torch.equal(same, weight)
    assert not still.any()


@pytest.mark.parametrize(
    ("channels", "groups", "sizes"), [(8, 1, [73]), (8, 4, [19] * 4), (100, 1, [640, 262]), (100, 2, [451, 451])]
)
def test_wide_and_grouped_convolutions_are_rounded_in_blocks(channels: int, groups: int, sizes: list[int]) -> None:
    moments = PatchMoments(nn.Conv2d(channels, 4, 3, padding=1, groups=groups))
    assert [len(squares) for squares in moments.squares] == sizes
    assert moments.blocks[0].start == 0
    assert moments.blocks[-1].stop == channels


@pytest.mark.parametrize("key", ["edsr_x2", "xlsr_x3", "plainusr_x3", "imdn_x2"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_network_comes_nearer_to_the_float_one(key: str, bits: int) -> None:
    network = float_network(key)
    quantized = QuantizedNetwork(network, QuantizationConfig(weight_bits=bits))
    crops = [tensor(noise(24, 20, seed)) for seed in range(6)]
    quantized.calibrate(lambda: crops)
    layers, seen, wanted = quantized.convolutions(), tensor(noise(30, 26, seed=9)), fold(network)
    old = {name: layer.codes() for name, layer in layers.items()}
    with torch.inference_mode():
        before = (quantized(seen) - wanted(seen).clamp(0, 255)).square().mean()
        round_weights(quantized.graph, [Sample(crop, 1.0) for crop in crops], lambda: None)
        after = (quantized(seen) - wanted(seen).clamp(0, 255)).square().mean()
    assert after < before
    assert any(not torch.equal(layers[name].codes().weight, codes.weight) for name, codes in old.items())
    assert all(torch.equal(layers[name].codes().steps, codes.steps) for name, codes in old.items())


def test_the_same_pictures_give_the_same_codes() -> None:
    found = []
    for _ in range(2):
        quantized = QuantizedNetwork(float_network("edsr_x2"), QuantizationConfig())
        crops = [tensor(noise(24, 20, seed)) for seed in range(3)]
        quantized.calibrate(lambda crops=crops: crops)
        round_weights(quantized.graph, [Sample(crop, 1.0) for crop in crops], lambda: None)
        found.append([layer.codes() for layer in quantized.convolutions().values()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)


def test_later_convolutions_make_good_what_a_tensor_lost() -> None:
    quantized = QuantizedNetwork(float_network("xlsr_x3"), QuantizationConfig(activation_bits=4))
    crops = [tensor(noise(24, 20, seed)) for seed in range(6)]
    quantized.calibrate(lambda: crops)
    seen, wanted, told = tensor(noise(30, 26, seed=9)), fold(float_network("xlsr_x3")), list[None]()
    with torch.inference_mode():
        before = (quantized(seen) - wanted(seen).clamp(0, 255)).square().mean()
        round_weights(quantized.graph, [Sample(crop, 1.0) for crop in crops], lambda: told.append(None))
        after = (quantized(seen) - wanted(seen).clamp(0, 255)).square().mean()
    assert len(told) == len(quantized.convolutions())
    assert after < 0.5 * before
