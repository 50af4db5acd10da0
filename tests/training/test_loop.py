from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_training import (
    Eventful,
    Told,
    TrainingFolders,
    assert_same_run,
    eventful,
    log_rows,
    same,
    small_config,
    small_objective,
)
from torch import Tensor, nn

from srquant.config import TrainingConfig
from srquant.errors import UserError
from srquant.networks import EDSR, EDSRConfig
from srquant.training import Reconstruction, Validation, fit, load_checkpoint


def disturb() -> None:
    """What another program does with the global random states."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


@pytest.mark.parametrize("make", [small_objective, eventful])
def test_ten_epochs_are_five_and_five(folders: TrainingFolders, make: Callable[[TrainingConfig], Any]) -> None:
    config = small_config()
    whole = make(config)
    assert folders.fit("whole", config, whole).finished
    half = folders.fit("halves", config.model_copy(update={"epochs": 5}), make(config))
    assert (half.finished, half.step, half.epoch) == (True, 20, 5)
    disturb()
    second = make(config.model_copy(update={"seed": 77}))
    result = folders.fit("halves", config, second, resume=True)
    assert (result.finished, result.step, result.epoch) == (True, 40, 10)
    assert same(dict(whole.state_dict()), dict(second.state_dict()))
    assert_same_run(folders.root / "whole", folders.root / "halves")
    assert result.best == load_checkpoint(folders.root / "halves").score


def test_a_run_left_after_every_step_ends_the_same(folders: TrainingFolders) -> None:
    """Inside epochs, inside a statistics epoch, between rows of the log."""
    config = small_config(epochs=4, schedule="cosine", gradient_clip=10.0, weight_decay=0.1)
    folders.fit("whole", config, eventful(config))
    sessions, finished = 0, False
    while not finished:
        disturb()
        finished = folders.fit("pieces", config, eventful(config), resume=True, time_budget=0.0).finished
        sessions += 1
        assert sessions <= 16
    assert sessions == 16
    assert_same_run(folders.root / "whole", folders.root / "pieces")


def test_a_run_goes_on_with_its_number_of_threads(folders: TrainingFolders) -> None:
    """Sums over several threads are taken in another order: the last bits would differ."""
    before = torch.get_num_threads()
    seen: list[int] = []

    class Watching(Reconstruction):
        def start_epoch(self, epoch: int) -> None:
            seen.append(torch.get_num_threads())

    def watching() -> Reconstruction:
        return Watching(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), 1e-3)

    try:
        torch.set_num_threads(2)
        folders.fit("run", small_config(epochs=1), watching())
        torch.set_num_threads(1)
        folders.fit("run", small_config(epochs=2), watching(), resume=True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2]


def test_only_a_network_of_its_final_form_can_be_the_best(folders: TrainingFolders) -> None:
    """A statistics epoch validates a network that nothing is rounded in; no later state could ever beat it."""
    config = small_config(epochs=4)
    result = folders.fit("run", config, eventful(config))
    assert result.best_step is not None
    assert load_checkpoint(result.folder, "best").epoch > 2
    early = folders.fit("early", small_config(epochs=2), eventful(config))
    assert early.best is None
    assert load_checkpoint(early.folder, "last").epoch == 2


def test_a_time_budget_leaves_a_run_that_goes_on(folders: TrainingFolders) -> None:
    config = small_config(epochs=100_000)
    result = folders.fit("run", config, time_budget=0.5)
    assert not result.finished
    assert 0 < result.step < 400_000
    assert load_checkpoint(result.folder, "last").step == result.step


def test_cadences_and_epochs_may_change(folders: TrainingFolders) -> None:
    config = small_config(epochs=2)
    folders.fit("run", config)
    changes = {"epochs": 3, "checkpoint_every": 1, "validate_every": 2, "unreadable": "skip"}
    assert folders.fit("run", config.model_copy(update=changes), resume=True).finished


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", 2e-3, r"learning_rate = 0\.001, not 0\.002"),
        ("epochs", 1, "epochs = 2, not 1; epochs may only grow"),
        ("ema", None, r"ema = 0\.95, not None"),
        ("seed", 2, "seed = 1, not 2"),
        ("betas", (0.8, 0.999), "betas"),
    ],
)
def test_other_settings_are_refused(folders: TrainingFolders, key: str, value: object, message: str) -> None:
    config = small_config(epochs=2)
    folders.fit("run", config)
    with pytest.raises(UserError, match=message):
        folders.fit("run", config.model_copy(update={key: value}), small_objective(config), resume=True)


def test_another_objective_or_other_pictures_are_refused(folders: TrainingFolders) -> None:
    config = small_config(epochs=1)
    folders.fit("run", config)
    with pytest.raises(UserError, match=r"learning_rate = 0\.001, not 0\.5"):
        folders.fit("run", config, small_objective(config.model_copy(update={"learning_rate": 0.5})), resume=True)
    wide = Reconstruction(EDSR(EDSRConfig(scale=2, blocks=1, width=8)), config.learning_rate)
    with pytest.raises(UserError, match="does not fit"):
        folders.fit("run", config, wide, resume=True)
    (folders.train / "p3.png").unlink()
    with pytest.raises(UserError, match="other training pictures"):
        folders.fit("run", config, resume=True)
    told = Told()
    lenient = config.model_copy(update={"unreadable": "skip", "epochs": 2, "schedule": "step"})
    assert folders.fit("run", lenient, resume=True, progress=told).finished
    assert "not those the run was begun with" in told.warnings[0]


def test_a_folder_with_a_run_is_not_overwritten(folders: TrainingFolders) -> None:
    config = small_config(epochs=1)
    folders.fit("run", config)
    with pytest.raises(UserError, match="already holds a run"):
        folders.fit("run", config)
    assert load_checkpoint(folders.root / "run", "last").step == 4


def test_a_damaged_last_checkpoint_is_told_and_the_best_goes_on(folders: TrainingFolders) -> None:
    class Stopping(Reconstruction):
        def start_epoch(self, epoch: int) -> None:
            if epoch == 3:
                raise UserError("enough")

    config = small_config(epochs=3, validate_every=5)
    folders.fit("whole", config)
    with pytest.raises(UserError, match="enough"):
        folders.fit("run", config, Stopping(small_objective(config).network.network, config.learning_rate))
    last, best = (load_checkpoint(folders.root / "run", kind) for kind in ("last", "best"))
    assert (last.step, best.step) == (6, 5)
    (last.folder / "part-000.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"fall back to '.*best-00000005"):
        folders.fit("run", config, resume=True)
    shutil.rmtree(last.folder)
    assert folders.fit("run", config, resume=True).finished
    assert_same_run(folders.root / "whole", folders.root / "run")


def test_two_runs_do_not_share_a_folder(folders: TrainingFolders) -> None:
    config = small_config(epochs=1)

    class Nosy(Reconstruction):
        def start_epoch(self, epoch: int) -> None:
            with pytest.raises(UserError, match="another process trains in"):
                folders.fit("run", config, resume=True)
            self.tried = True

    objective = Nosy(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), 1e-3)
    folders.fit("run", config, objective)
    assert objective.tried


def test_the_average_is_validated_and_restored(folders: TrainingFolders) -> None:
    config = small_config(epochs=3)
    objective = small_objective(config)
    result = folders.fit("run", config, objective)
    checkpoint = load_checkpoint(result.folder)
    validation = folders.validation(config)
    cpu = torch.device("cpu")
    restored = small_objective(config)
    checkpoint.restore(restored)
    assert validation.score(restored.network, cpu) == checkpoint.score == result.best
    checkpoint.restore(restored, averaged=False)
    assert validation.score(restored.network, cpu) != checkpoint.score


def test_it_learns(folders: TrainingFolders) -> None:
    config = small_config(epochs=12, learning_rate=5e-3, schedule="constant")
    objective = small_objective(config)
    before = folders.validation(config).score(objective.network, torch.device("cpu"))
    result = folders.fit("run", config, objective)
    assert result.best is not None
    assert result.best > before + 3
    losses = [float(row["loss"]) for row in log_rows(result.folder)]
    assert losses[-1] < 0.6 * losses[0]


def test_without_validation_only_the_last_is_kept(folders: TrainingFolders) -> None:
    config = small_config(epochs=1)
    result = fit(small_objective(config), folders.data(config), None, config, folders.root / "run", accelerator="cpu")
    assert (result.finished, result.best, result.best_step) == (True, None, None)
    assert load_checkpoint(result.folder, "last").step == 4
    with pytest.raises(UserError, match="no 'best' checkpoint"):
        load_checkpoint(result.folder)


def test_bf16_trains_in_mixed_precision(folders: TrainingFolders) -> None:
    config = small_config(epochs=2, precision="bf16")
    seen = set()

    class Watched(Reconstruction):
        def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
            seen.add((low.dtype, self.network.network.head(low).dtype))
            return super().forward(low, high)

    objective = Watched(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), 1e-3)
    assert folders.fit("run", config, objective).finished
    assert seen == {(torch.float32, torch.bfloat16)}
    assert {p.dtype for p in objective.parameters()} == {torch.float32}


def test_progress_tells_epochs_loss_score_speed_and_time(folders: TrainingFolders) -> None:
    told = Told()
    folders.fit("run", small_config(epochs=2), progress=told)
    assert told.tasks == ["epoch 1 of 2: 4", "epoch 2 of 2: 4"]
    assert told.steps == 8
    for word in ("loss ", " dB", " images/s", " left"):
        assert word in told.notes[-1]


class Poisoned(Eventful):
    """Goes wrong in epoch 3, at step 9."""

    how = "weight"

    def is_final(self, epoch: int) -> bool:
        return True

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        self.poisoned = epoch == 3
        if self.poisoned and self.how == "weight":
            block: Any = self.network.network.get_submodule("body.0.body.2")
            nn.init.constant_(block.bias, float("nan"))

    def forward(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        parts = super().forward(low, high)
        if self.poisoned and self.how == "loss":
            parts["teacher"] = parts["teacher"] / 0
        if self.poisoned and self.how == "gradient":
            parts["root"] = (self.scale * 0).sqrt().sum()
        return parts


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("weight", r"'l1' is nan, 'teacher' is nan; the first module .* is 'network\.network\.body\.0\.body\.2'"),
        ("loss", r"loss part 'teacher' is inf"),
        ("gradient", r"the loss is finite, the gradient of 'scale' is not"),
    ],
)
def test_a_loss_that_is_no_number_stops_with_the_place(folders: TrainingFolders, how: str, message: str) -> None:
    objective = Poisoned(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), 1e-3)
    objective.how = how
    with pytest.raises(UserError, match=message) as caught:
        folders.fit("run", small_config(), objective)
    told = str(caught.value)
    assert told.startswith("step 9 (epoch 3): ")
    good = load_checkpoint(folders.root / "run", "last")
    assert good.step == 6
    assert str(good.folder) in told
    assert str(load_checkpoint(folders.root / "run").folder) in told


def test_a_picture_that_breaks_stops_or_is_skipped(folders: TrainingFolders) -> None:
    class Breaking(Reconstruction):
        def start_epoch(self, epoch: int) -> None:
            if epoch == 1:
                for path in [*folders.cache.iterdir(), folders.train / "p1.png"]:
                    path.unlink()

    def run(name: str, unreadable: str, progress: Told) -> Any:
        config = small_config(epochs=4, unreadable=unreadable)
        data = folders.data(config)
        objective = Breaking(EDSR(EDSRConfig(scale=2, blocks=1, width=4)), 1e-3)
        folder = folders.root / name
        return fit(objective, data, None, config, folder, accelerator="cpu", progress=progress)

    backup = (folders.train / "p1.png").read_bytes()
    told = Told()
    with pytest.raises(UserError, match=r"p1\.png"):
        run("refused", "refuse", told)
    (folders.train / "p1.png").write_bytes(backup)
    assert run("skipped", "skip", told).finished


def test_mistakes_are_told_before_anything_is_written(folders: TrainingFolders) -> None:
    config = small_config()
    other = config.model_copy(update={"patch": 9})
    arguments = (small_objective(config), folders.data(config), folders.validation(config))
    with pytest.raises(UserError, match="opened with patch = 8, but the run has patch = 9"):
        fit(*arguments, other, folders.root / "run")
    with pytest.raises(UserError, match="a batch of 4 cannot be shared by 3 devices"):
        fit(*arguments, config, folders.root / "run", devices=3, accelerator="cpu")
    with pytest.raises(UserError, match="cannot train on 1 device"):
        fit(*arguments, config, folders.root / "run", accelerator="abacus")
    with pytest.raises(UserError, match="for x2, the validation pictures for x3"):
        fit(arguments[0], arguments[1], Validation(folders.held_out, 3, 1), config, folders.root / "run")
    assert not (folders.root / "run").exists()
    (folders.root / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in the folder"):
        fit(*arguments, config, folders.root / "file", accelerator="cpu")
