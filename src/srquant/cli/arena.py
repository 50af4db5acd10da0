"""The command of the arena: methods side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from srquant.cli import output
from srquant.cli.training import AcceleratorOption, BudgetOption, check_limits
from srquant.errors import UserError, unknown


def arena(
    file: Annotated[Path, typer.Argument(help="What is compared, as TOML.", metavar="FILE.toml")],
    target: Annotated[Path, typer.Option("-o", "--output", help="Folder of the runs, the table and the plot.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the arena in the folder, if there is one.")
    ] = False,
    weights: Annotated[Path | None, typer.Option(help="Float checkpoint that every entry starts from.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Folder of training pictures; repeatable.")] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Folder of pictures to choose the best states by; never a benchmark set.")
    ] = None,
    benchmark: Annotated[list[Path] | None, typer.Option(help="Benchmark set to score on; repeatable.")] = None,
    engine: Annotated[
        str, typer.Option(help="What scores deployed networks; auto: ONNX Runtime, or PyTorch without it.")
    ] = "auto",
    accelerator: AcceleratorOption = "auto",
    time_budget: BudgetOption = None,
) -> None:
    """Compare methods: the same float weights, pictures, placement and budget; one table, one plot."""
    check_limits(accelerator, time_budget)
    started = time.monotonic()
    from torch.cuda import is_available

    from srquant.engines import ENGINES, installed_engines
    from srquant.evaluation.plots import check_plot
    from srquant.experiments.arena import plan
    from srquant.experiments.arena.begin import begin
    from srquant.experiments.arena.notes import notes
    from srquant.experiments.arena.report import cost_cells, save_arena, score_cells
    from srquant.experiments.arena.ring import Ring
    from srquant.experiments.arena.runs import run_arena
    from srquant.experiments.arena.table import table

    if engine not in ("auto", *ENGINES):
        raise unknown("engine", engine, ("auto", *ENGINES))
    if engine not in ("auto", *installed_engines()):
        raise UserError(f"the engine '{engine}' is not installed; installed: {', '.join(installed_engines())}")
    if accelerator == "cuda" and not is_available():
        raise UserError("--accelerator cuda: PyTorch finds no CUDA device; allowed here: auto, cpu")
    check_plot("an arena")
    told = plan.open_arena(file, weights=weights, data=data or (), validation=validation)
    ring = Ring(told, target, tuple(benchmark or ()), engine)
    begin(ring, resume=resume, progress=output.Bars())
    left = None if time_budget is None else max(time_budget - (time.monotonic() - started), 0.0)
    failed = False
    try:
        for outcome in run_arena(ring, time_budget=left, accelerator=accelerator, progress=output.Bars()):
            failed |= outcome.status == "failed"
            output.pairs([(outcome.name, f"{outcome.status}: {outcome.message}")])
    except KeyboardInterrupt as interruption:
        if str(interruption):
            output.warn(str(interruption))
        raise
    rows = table(ring)
    written = save_arena(ring)
    output.table("scores: PSNR in dB and SSIM", *score_cells(ring, rows))
    output.table("costs", *cost_cells(rows))
    output.pairs([("note", line) for line in notes(ring, rows)])
    output.pairs([("wrote", str(path)) for path in written])
    missing = sum(row.planned - len(row.results) for row in rows)
    if missing:
        output.warn(f"{missing} of {sum(row.planned for row in rows)} runs are not finished; go on with --resume")
    if failed:
        raise typer.Exit(1)
