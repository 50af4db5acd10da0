"""The commands of training: presets, train, and the queue of experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srquant.cli import output
from srquant.errors import UserError, unknown

if TYPE_CHECKING:
    from srquant.experiments import Trained

_SETS = ("Set5", "Set14", "B100", "Urban100")
_ACCELERATORS = ("auto", "cpu", "cuda")
_NOT_THERE = "-"

DevicesOption = Annotated[int, typer.Option(min=1, help="Devices to share every batch.")]
AcceleratorOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BudgetOption = Annotated[float | None, typer.Option(help="Seconds after which the run is saved and left.")]
QueueOption = Annotated[Path, typer.Option(help="Folder of experiments, one TOML file each.")]
RunsOption = Annotated[Path, typer.Option(help="Folder of the runs and of results.csv.")]

experiments = typer.Typer(help="Train a folder of experiments, one after another.")


@experiments.callback(invoke_without_command=True)
def _experiments(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def presets(
    name: Annotated[str | None, typer.Argument(help="Print the file of this preset.", show_default=False)] = None,
) -> None:
    """List the presets with the paper's PSNR and ours, or print one."""
    from srquant import presets

    if name is not None:
        typer.echo(presets.text(name), nl=False)
        return
    measured, rows = presets.measured(), []
    for each in presets.names():
        paper, ours = presets.open_experiment(each).paper, measured.get(each)
        cells = []
        for benchmark in _SETS:
            told = [None if scores is None else scores.psnr.get(benchmark) for scores in (paper, ours)]
            cells.append(" / ".join(_NOT_THERE if psnr is None else f"{psnr:.2f}" for psnr in told))
        rows.append([each, *cells])
    output.table("PSNR on Y in dB: paper / ours", ["preset", *_SETS], rows)
    for each, ours in measured.items():
        told = f"{ours.engine}; {ours.placement}; {ours.budget}; sha256 {ours.sha256[:16]}"
        output.pairs([(f"ours, {each}", told)])


def train(
    preset: Annotated[str, typer.Argument(help="Name of a preset, or a TOML file.", metavar="PRESET|FILE.toml")],
    target: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the run; runs/NAME by default.", show_default=False)
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, such as training.epochs=10; repeatable.")
    ] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Folder of training pictures; repeatable.")] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Folder of pictures to choose the best state by; never a benchmark set.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Float checkpoint to start from.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    devices: DevicesOption = 1,
    accelerator: AcceleratorOption = "auto",
    time_budget: BudgetOption = None,
) -> None:
    """Train a network, float or quantised."""
    check_limits(accelerator, time_budget)
    from srquant.presets import open_experiment

    experiment = open_experiment(preset, changes or ())
    from srquant import experiments

    try:
        trained = experiments.train(
            experiment,
            target or Path("runs") / Path(preset).name.removesuffix(".toml"),
            data=data or (),
            validation=validation,
            weights=weights,
            resume=resume,
            devices=devices,
            accelerator=accelerator,
            time_budget=time_budget,
            progress=output.Bars(),
        )
    except KeyboardInterrupt as interruption:
        if str(interruption):
            output.warn(str(interruption))
        raise
    output.pairs(_told(trained))


@experiments.command("list")
def list_experiments(folder: QueueOption = Path("experiments"), runs: RunsOption = Path("runs")) -> None:
    """List the experiments and how they stand."""
    from srquant.experiments import find_entries, standing

    entries = find_entries(folder)
    stands = standing(entries, runs)
    rows = []
    for entry in entries:
        network, training = entry.experiment.network, entry.experiment.training
        steps = f"{training.epochs * training.steps_per_epoch} x {training.batch} x {training.patch}"
        method = entry.experiment.method.name if entry.experiment.method else "float"
        rows.append([entry.name, network.name, method, steps, stands[entry.name]])
    output.table("", ["experiment", "network", "method", "steps x batch x patch", "stands"], rows)


@experiments.command("run")
def run_experiments(
    folder: QueueOption = Path("experiments"),
    runs: RunsOption = Path("runs"),
    data: Annotated[list[Path] | None, typer.Option(help="Folder of training pictures; repeatable.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Folder of pictures to choose the best states by.")] = None,
    benchmark: Annotated[list[Path] | None, typer.Option(help="Benchmark set to score on; repeatable.")] = None,
    time_budget: BudgetOption = None,
    devices: DevicesOption = 1,
    accelerator: AcceleratorOption = "auto",
    engine: Annotated[
        str, typer.Option(help="What scores deployed networks; auto: ONNX Runtime, or PyTorch without it.")
    ] = "auto",
) -> None:
    """Do what is not done yet: train, go on, score, add a row to results.csv; exit code 1 where one failed."""
    check_limits(accelerator, time_budget)
    from srquant.engines import ENGINES
    from srquant.experiments import Places, find_entries, run_queue

    if engine not in ("auto", *ENGINES):
        raise unknown("engine", engine, ("auto", *ENGINES))
    places = Places(runs, tuple(data or ()), validation, tuple(benchmark or ()))
    outcomes = run_queue(
        find_entries(folder),
        places,
        time_budget=time_budget,
        devices=devices,
        accelerator=accelerator,
        engine=engine,
        progress=output.Bars(),
    )
    outcome, failed = None, False
    for outcome in outcomes:
        failed |= outcome.status == "failed"
        output.pairs([(outcome.name, f"{outcome.status}: {outcome.message}")])
    if outcome is None:
        output.pairs([("nothing to do", "no experiment is left that could run")])
    if failed:
        raise typer.Exit(1)


def check_limits(accelerator: str, time_budget: float | None) -> None:
    """Refuse an unknown accelerator and a negative time.

    Raises:
        UserError: one of them.
    """
    if accelerator not in _ACCELERATORS:
        raise unknown("accelerator", accelerator, _ACCELERATORS)
    if time_budget is not None and not time_budget >= 0:
        raise UserError(f"--time-budget {time_budget}: allowed are 0 seconds or more")


def _told(trained: Trained) -> list[tuple[str, str]]:
    """What a training came to, for people."""
    best = _NOT_THERE if trained.validation_psnr is None else f"{trained.validation_psnr:.3f} dB"
    rows = [("run", str(trained.folder)), ("steps", f"{trained.step} of {trained.steps}"), ("validation PSNR", best)]
    if not trained.finished:
        return [*rows, ("stopped", "the time is over; go on with --resume")]
    rows.append(("sha256", (trained.sha256 or "")[:16]))
    if trained.file is None:
        return [*rows, ("simulation only", f"nothing was deployed: {trained.simulated_because}")]
    return [*rows, ("wrote", str(trained.file))]
