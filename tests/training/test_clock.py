from __future__ import annotations

import pytest

from srquant.training import clock
from srquant.training.clock import Clock


class Time:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(clock.time, "monotonic", lambda: self.now)


def test_the_rate_is_that_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    told = Clock(step=0, last=10, batch=8, seconds=3.0)
    for _ in range(2):
        time.now += 0.5
        told.tick()
    with told.beside_training():
        time.now += 50
    assert told.rate() == 16
    time.now += 0.25
    told.tick()
    assert told.rate() == 32
    assert told.seconds == 3.0 + 51.25


def test_the_note_tells_loss_score_speed_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    told = Clock(step=5, last=15, batch=4, seconds=0.0)
    time.now += 2
    told.tick()
    told.tick()
    assert told.note({"l1": 1.5, "skt": 0.25}, 31.256) == "loss 1.750  31.26 dB  4 images/s  0:00:08 left"
    assert "dB" not in told.note({"l1": 1.5}, None)
