from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from srquant.training.patches import Draw, Lottery, cut


def test_a_draw_depends_on_seed_step_place_and_attempt_alone() -> None:
    first, second = Lottery([30, 70], seed=3), Lottery([30, 70], seed=3)
    wanted = [first.draw(step, place, attempt) for step in (1, 2) for place in range(4) for attempt in (0, 1)]
    again = [second.draw(step, place, attempt) for step in (1, 2) for place in range(4) for attempt in (0, 1)]
    assert wanted == again
    assert second.draw(2, 3, 1) == wanted[-1]
    assert len({draw[1:3] for draw in wanted}) == len(wanted)
    assert Lottery([30, 70], seed=4).draw(1, 0) != wanted[0]


def test_a_draw_is_the_same_on_every_machine() -> None:
    assert Lottery([30, 70], seed=3).draw(1, 0) == Draw(1, 15649216603714737163, 15004226688420960171, 2)


def test_pictures_are_drawn_by_area_and_turned_evenly() -> None:
    lottery = Lottery([100, 300, 600], seed=1)
    draws = [lottery.draw(step, place) for step in range(1, 501) for place in range(8)]
    pictures = Counter(draw.picture for draw in draws)
    assert [pictures[i] / len(draws) for i in range(3)] == pytest.approx([0.1, 0.3, 0.6], abs=0.02)
    turns = Counter(draw.turn for draw in draws)
    assert sorted(turns) == list(range(8))
    assert all(count / len(draws) == pytest.approx(1 / 8, abs=0.02) for count in turns.values())


def test_every_place_of_a_picture_is_reached_and_none_beyond() -> None:
    low = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5, 1).repeat(3, 2)
    high = low.repeat(2, 0).repeat(2, 1)
    lottery = Lottery([30], seed=0)
    corners = {int(cut(lottery.draw(1, p)._replace(turn=0), low, high, 4)[0][0, 0, 0]) for p in range(200)}
    assert corners == {0, 1, 5, 6, 10, 11}


@pytest.mark.parametrize("turn", range(8))
def test_both_patches_are_the_same_place_turned_alike(turn: int) -> None:
    low = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    high = low.repeat(3, 0).repeat(3, 1)
    small, large = cut(Draw(0, 2**63, 2**62, turn), low, high, 5)
    assert (small.shape, large.shape) == ((5, 5, 3), (15, 15, 3))
    np.testing.assert_array_equal(large, small.repeat(3, 0).repeat(3, 1))
    top, left = (2**63 * 5) >> 64, (2**62 * 8) >> 64
    expected = low[top : top + 5, left : left + 5]
    expected = expected[::-1] if turn & 1 else expected
    expected = expected[:, ::-1] if turn & 2 else expected
    np.testing.assert_array_equal(small, expected.swapaxes(0, 1) if turn & 4 else expected)
