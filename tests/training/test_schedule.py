from __future__ import annotations

import math

import pytest
from small_training import small_config

from srquant.training.schedule import epoch_of, rate_factor, total_steps


def test_epochs_begin_with_their_first_step() -> None:
    config = small_config(steps_per_epoch=4)
    assert [epoch_of(step, config) for step in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    assert total_steps(config) == 40


def test_steps_fall_after_every_decay_epochs() -> None:
    config = small_config(steps_per_epoch=2, decay_epochs=3, gamma=0.5, warm_up_steps=0)
    factors = [rate_factor(step, config) for step in range(1, 15)]
    assert factors == [1] * 6 + [0.5] * 6 + [0.25] * 2


def test_the_cosine_falls_to_nothing() -> None:
    config = small_config(schedule="cosine", warm_up_steps=0)
    assert rate_factor(1, config) == 1
    assert rate_factor(21, config) == pytest.approx(0.5)
    assert rate_factor(40, config) == pytest.approx((1 + math.cos(math.pi * 39 / 40)) / 2)
    assert rate_factor(41, config) == pytest.approx(0)


def test_the_warm_up_rises_linearly_under_any_schedule() -> None:
    config = small_config(schedule="constant", warm_up_steps=4)
    assert [rate_factor(step, config) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1, 1, 1]
    stepped = small_config(schedule="step", steps_per_epoch=1, decay_epochs=1, gamma=0.5, warm_up_steps=4)
    assert [rate_factor(step, stepped) for step in (1, 2, 3)] == [0.25, 0.25, 0.1875]
