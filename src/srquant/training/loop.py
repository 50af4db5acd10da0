"""The training loop: epochs, steps, validation, checkpoints; all of it in `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srquant.config import TrainingConfig
from srquant.errors import NotFiniteError, UserError
from srquant.progress import Progress, Silent
from srquant.training.checkpoint import find_checkpoint
from srquant.training.clock import Clock
from srquant.training.data import TrainingData
from srquant.training.failure import explain
from srquant.training.gradients import take_gradients
from srquant.training.log import Log, Row
from srquant.training.objective import Objective
from srquant.training.run import Run
from srquant.training.schedule import epoch_of, total_steps
from srquant.training.session import Interruption, own_folder, repeatable
from srquant.training.team import ForwardChanges, Team
from srquant.training.validation import Validation

_LOG_EVERY = 50
"""Steps between rows of the log; the end of an epoch and every validation have a row, too."""


@dataclass(frozen=True)
class Result:
    """Where a run stands.

    Attributes:
        finished: all epochs are done; False where the time budget ended first.
        step: the last one done.
        epoch: of that step.
        best: highest validation PSNR, None without validation.
        best_step: where it was reached.
        folder: of the run; `load_checkpoint` takes it.
    """

    finished: bool
    step: int
    epoch: int
    best: float | None
    best_step: int | None
    folder: Path


def fit(
    objective: Objective,
    data: TrainingData,
    validation: Validation | None,
    config: TrainingConfig,
    folder: Path,
    *,
    devices: int = 1,
    accelerator: str = "auto",
    resume: bool = False,
    progress: Progress | None = None,
    time_budget: float | None = None,
) -> Result:
    """Train an objective; afterwards it holds its last state, and `folder` its checkpoints and log.

    Seeds the global random states of Python, NumPy and PyTorch. With several devices the script that calls this is
    run once more for each of them (or by `torchrun`); only the first process returns, the others end here, and one
    program can do so once. The loss and gradients are those of the joined batch; what a network computes of its
    own batch (batch normalisation, the first range of a quantiser) is computed on each device's share and averaged.

    Args:
        objective: an `nn.Module`; see `Objective`.
        data: training pictures, opened with the same `config`.
        validation: pictures that choose the best checkpoint, from the first step that learns on; None keeps only the
            last.
        config: how long, how fast, on what patches.
        folder: of the run; made if it is not there.
        devices: how many take part, on this machine.
        accelerator: "auto", "cpu", "gpu" or another of Fabric's words.
        resume: go on from the newest checkpoint in `folder`, if there is one.
        progress: told of epochs and steps.
        time_budget: seconds after which the run is saved and left.

    Raises:
        UserError: `folder` holds a run and `resume` is False, or one that was begun otherwise or is damaged; a
            picture cannot be read; a loss or gradient is no finite number; there are no such devices.
        KeyboardInterrupt: Ctrl-C was pressed; the run has been saved after the step at hand.
    """
    for key in ("batch", "patch", "seed", "unreadable"):
        opened, wanted = getattr(data.config, key), getattr(config, key)
        if opened != wanted:
            raise UserError(f"the training data were opened with {key} = {opened}, but the run has {key} = {wanted}")
    if validation is not None and validation.scale != data.scale:
        raise UserError(f"the training data are for x{data.scale}, the validation pictures for x{validation.scale}")
    started = time.monotonic()
    deadline = math.inf if time_budget is None else started + time_budget
    team = Team(devices, accelerator, config)
    progress = progress if progress and team.leads else Silent()
    with ExitStack() as stack:
        try:
            stack.enter_context(repeatable())
            interruption = stack.enter_context(Interruption())
            team.together(lambda: stack.enter_context(own_folder(folder)) if team.leads else None)
            run = Run(objective, config, folder, team)
            run.begin(resume, data.fingerprint, progress)
            log = team.together(lambda: Log(folder, run.position.step) if team.leads else None)
            if log is not None:
                stack.callback(log.close)
            stopped = _train(run, data, validation, log, progress, interruption, deadline)
        except (UserError, KeyboardInterrupt):
            team.leave()
            raise
        team.leave()
    at = run.position
    if stopped and interruption.told:
        raise KeyboardInterrupt(f"stopped after step {at.step}; the run is saved in '{folder}' and can be resumed")
    return Result(at.step == total_steps(config), at.step, at.epoch, at.best, at.best_step, folder)


def _train(
    run: Run,
    data: TrainingData,
    validation: Validation | None,
    log: Log | None,
    progress: Progress,
    interruption: Interruption,
    deadline: float,
) -> bool:
    """The steps that are left; True where the run was told to stop before the last one."""
    config, team, at = run.config, run.team, run.position
    device = team.fabric.device
    last = total_steps(config)
    clock = Clock(at.step, last, config.batch, at.seconds)
    changes = ForwardChanges(team, run.module)
    stop = False
    with data.batches(at.step + 1, last, team.places, pinned=device.type == "cuda") as batches:
        for step in range(at.step + 1, last + 1):
            epoch = epoch_of(step, config)
            if epoch != at.epoch or clock.steps == 0:
                progress.finish()
                progress.start(f"epoch {epoch} of {config.epochs}", epoch * config.steps_per_epoch - step + 1)
            run.enter(epoch)
            low, high = (_floats(part, device) for part in team.together(lambda: next(batches)))
            parts = _step(run, changes, step, low, high)
            run.average.update(learnt=run.objective.learns(epoch))
            at.step = step
            for name, value in parts.items():
                at.sums[name] = at.sums.get(name, 0.0) + value
                at.counts[name] = at.counts.get(name, 0) + 1
            clock.tick()
            at.seconds = clock.seconds

            ends_epoch = step % config.steps_per_epoch == 0
            due = ends_epoch if config.validate_every is None else step % config.validate_every == 0
            score = None
            if validation is not None and run.objective.learns(epoch) and (due or step == last):
                with clock.beside_training():
                    score = _validate(run, validation)
            if score is not None or ends_epoch or step % _LOG_EVERY == 0:
                row = _row(run, clock, score)
                team.together(lambda row=row: log.write(row) if log else None)
            stop = team.any(interruption.told or time.monotonic() > deadline)
            if score is not None and run.objective.is_final(epoch) and (at.best is None or score > at.best):
                at.best, at.best_step = score, step
                run.save("best", data.fingerprint, score)
            if stop or step == last or step % config.checkpoint_every == 0:
                run.save("last", data.fingerprint, score)
            progress.note(clock.note(parts, at.best))
            progress.advance()
            if stop:
                break
    progress.finish()
    return stop


def _step(run: Run, changes: ForwardChanges, step: int, low: Tensor, high: Tensor) -> dict[str, float]:
    """One step of the optimiser; the loss parts, averaged over all processes."""
    config, team = run.config, run.team
    learns = run.objective.learns(epoch_of(step, config))
    run.set_rates(step)
    run.optimizer.zero_grad(set_to_none=True)
    changes.before()

    def forward() -> dict[str, Tensor]:
        with torch.set_grad_enabled(learns), team.fabric.autocast():
            return run.module(low, high)

    def backward(some: Sequence[Tensor], keep_graph: bool) -> None:
        team.fabric.backward(_sum(some), retain_graph=keep_graph)
        team.average([parameter.grad for parameter in run.parameters if parameter.grad is not None])

    parts = forward()
    norm = torch.zeros((), device=low.device)
    gradients: list[Tensor] = []
    if learns:
        gradients = take_gradients(run.objective, run.parameters, parts, backward)
        norm = torch.nn.utils.get_total_norm(gradients).to(low.device)
    changes.share()
    told = torch.stack([*(part.detach().float() for part in parts.values()), norm])
    team.average([told])
    *losses, size = told.tolist()
    values = dict(zip(parts, losses, strict=True))
    if not all(map(math.isfinite, [*losses, size])):
        raise _not_finite(run, step, values, forward)
    if learns:
        if config.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(run.parameters, config.gradient_clip, norm)
        run.optimizer.step()
    return values


def _not_finite(run: Run, step: int, parts: dict[str, float], forward: Callable[[], object]) -> NotFiniteError:
    why = run.team.first(explain(run.module, parts, forward))
    good = find_checkpoint(run.folder, "last")
    best = find_checkpoint(run.folder, "best")
    told = f"last good checkpoint '{good}'" + (f", best '{best}'" if best else "")
    return NotFiniteError(
        f"step {step} (epoch {epoch_of(step, run.config)}): the loss is not a finite number; {why}; {told}"
    )


def _validate(run: Run, validation: Validation) -> float:
    team = run.team
    with run.average.applied():
        return team.sum(validation.score(run.objective.network, team.fabric.device, team.rank, team.size))


def _row(run: Run, clock: Clock, score: float | None) -> Row:
    """The means since the last row, which are then forgotten."""
    at = run.position
    parts = {name: total / at.counts[name] for name, total in at.sums.items()}
    loss = sum(at.sums.values()) / (at.step - at.logged)
    at.sums, at.counts, at.logged = {}, {}, at.step
    rate = run.optimizer.param_groups[0]["lr"]
    return Row(at.step, at.epoch, loss, rate, score, clock.rate(), at.seconds, parts)


def _floats(pixels: Tensor, device: torch.device) -> Tensor:
    """Uint8 [B,H,W,3] to float32 [B,3,H,W] on a device, channels last in memory."""
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float()


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack([part.float() for part in parts]).sum()
