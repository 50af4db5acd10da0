from __future__ import annotations

import pytest
import torch
from torch import nn

from srquant.training.average import Average


def layer(value: float) -> nn.Linear:
    made = nn.Linear(1, 1, bias=False)
    made.weight.data.fill_(value)
    return made


def test_the_average_follows_with_a_decay_that_rises() -> None:
    network = layer(100.0)
    average = Average(network, 0.15)
    expected = None
    for updates, value in enumerate((1.0, 2.0, 5.0, 3.0)):
        network.weight.data.fill_(value)
        average.update(learnt=True)
        decay = min(0.15, updates / (updates + 10))
        expected = value if expected is None else decay * expected + (1 - decay) * value
    with average.applied():
        assert network.weight.item() == pytest.approx(expected)
    assert network.weight.item() == 3.0


def test_statistics_replace_the_average() -> None:
    network = layer(1.0)
    average = Average(network, 0.9)
    for _ in range(50):
        average.update(learnt=True)
    network.weight.data.fill_(7.0)
    average.update(learnt=False)
    with average.applied():
        assert network.weight.item() == 7.0


def test_state_goes_on() -> None:
    network, other = layer(1.0), layer(1.0)
    first, second = Average(network, 0.9), Average(other, 0.9)
    for value in (2.0, 3.0):
        network.weight.data.fill_(value)
        first.update(learnt=True)
    second.load(first.state())
    for one in (network, other):
        one.weight.data.fill_(9.0)
    first.update(learnt=True)
    second.update(learnt=True)
    with first.applied(), second.applied():
        assert torch.equal(network.weight, other.weight)


def test_without_decay_nothing_is_averaged() -> None:
    network = layer(1.0)
    average = Average(network, None)
    network.weight.data.fill_(5.0)
    average.update(learnt=True)
    with average.applied():
        assert network.weight.item() == 5.0
    assert average.state()["parameters"] == []
