from __future__ import annotations

import numpy as np
import pytest
import torch
from hand_graphs import random, spatial_steps
from torch import nn

from srquant.engines.program_torch import run_program
from srquant.errors import UserError
from srquant.integer import program
from srquant.integer.program_lowering import program_of
from srquant.networks.layers import ContrastAttention, FloatLayer, LocalImportance, SpatialAttention

SIZES = [(20, 33), (15, 16), (7, 9), (1, 1)]


def layers() -> dict[str, FloatLayer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "contrast": ContrastAttention(5, 2),
            "spatial": SpatialAttention(8, 5, deep=False),
            "spatial deep": SpatialAttention(8, 5, deep=True),
            "importance": LocalImportance(7, 5),
        }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", layers())
def test_a_program_computes_what_its_layer_computes(name: str, size: tuple[int, int]) -> None:
    layer = layers()[name]
    steps = program_of(name, layer)
    values = random(1).normal(0, 2, (5, *size)).astype(np.float32)
    with torch.no_grad():
        wanted = layer.double()(torch.from_numpy(values)[None].double())[0].numpy()
    found = program.run(steps, values)
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-5
    assert wanted.std() > 1e-3 or size == (1, 1)
    assert np.abs(run_program(steps, torch.from_numpy(values)[None])[0].numpy() - wanted).max() < 1e-5


def test_every_kind_of_step_is_tried_by_the_engines() -> None:
    tried = {type(step) for step in spatial_steps(3)}
    assert tried == set(program._KERNELS)
    assert {s.kind for s in spatial_steps(3) if isinstance(s, program.Binary)} == set(program._OPERATORS)


def test_a_sum_over_many_numbers_is_exact_to_float32() -> None:
    values = np.full((1, 300, 300), 0.1, np.float32)
    assert program.run((program.Mean("m", program.INPUT),), values) == np.float32(0.1)


class Strange(FloatLayer):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__(4)
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x) * 2 + 1


class Cosine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cos(x)


class HalfMean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=3, keepdim=True)


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        (nn.Softplus(), "Softplus"),
        (Cosine(), "'cos'"),
        (HalfMean(), "'mean'"),
        (nn.Conv2d(4, 4, 3, dilation=2), "dilation"),
        (nn.Conv2d(4, 4, 3, stride=(1, 2)), "stride"),
        (nn.Conv2d(4, 4, 3, padding="same"), "padding=same"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode=True"),
        (nn.AvgPool2d(3, 1, 1), "AvgPool2d"),
        (nn.AvgPool2d((2, 3)), "AvgPool2d"),
    ],
)
def test_an_operation_without_a_step_is_named(inside: nn.Module, told: str) -> None:
    with pytest.raises(UserError, match=r"the layer 'body.cca' \(Strange\) computes .*no step.*known are") as error:
        program_of("body.cca", Strange(inside))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_and_known_layers_have_steps() -> None:
    steps = program_of("x", Strange(nn.MaxPool2d(2)))
    values = random(2).normal(0, 1, (4, 5, 6)).astype(np.float32)
    with torch.no_grad():
        wanted = Strange(nn.MaxPool2d(2))(torch.from_numpy(values)[None])[0].numpy()
    assert np.array_equal(program.run(steps, values), wanted)
