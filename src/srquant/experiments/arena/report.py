"""An arena for people and programs: Markdown, CSV, JSON and a plot."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srquant.errors import UserError
from srquant.evaluation.plots import check_plot
from srquant.experiments.arena.notes import notes
from srquant.experiments.arena.plan import FLOAT_BITS
from srquant.experiments.arena.ring import Ring
from srquant.experiments.arena.table import SETS, Point, Row, Spread, curves, table
from srquant.experiments.scoring import SIMULATION
from srquant.files import atomic_path

REPORT_FILE = "table.md"
TABLE_FILE = "table.csv"
DATA_FILE = "table.json"
PLOT_FILE = "curves.png"
CURVES_FILE = "curves.csv"

_NOT_THERE = "-"
_MARK = " *"
_SIMULATED = "simulated"
"""What people read for the engine of networks that cannot run as integers."""


def save_arena(ring: Ring) -> list[Path]:
    """Write the table and the curves of an arena, as far as it is; returns the paths.

    Raises:
        UserError: matplotlib is not installed, or the folder cannot be written.
    """
    rows, points = table(ring), curves(ring)
    texts = {
        REPORT_FILE: markdown(ring, rows),
        TABLE_FILE: _csv(*flat(ring, rows)),
        DATA_FILE: json.dumps(data(ring, rows), indent=1, allow_nan=False) + "\n",
        CURVES_FILE: _csv([*Point.__annotations__], [[*vars(point).values()] for point in points]),
    }
    try:
        for name, text in texts.items():
            with atomic_path(ring.folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        plot(ring, points, ring.folder / PLOT_FILE)
    except OSError as error:
        raise UserError(f"cannot write the table in '{ring.folder}': {error.strerror}") from error
    return [ring.folder / name for name in (*texts, PLOT_FILE)]


def score_cells(ring: Ring, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of what people see of the scores."""
    sets = [one.name for one in ring.sets]
    columns = ["entry", "bits", "seeds", *(f"{name} {kind}" for name in sets for kind in ("PSNR", "SSIM"))]
    return [*columns, "validation", "scored by"], [_score_line(row, sets) for row in rows]


def cost_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of what people see of the costs."""
    columns = ["entry", "bits", "levels w/a", "G BitOPs", "kB", "steps", "ms/step", "peak MB"]
    return columns, [_cost_line(row) for row in rows]


def markdown(ring: Ring, rows: Sequence[Row]) -> str:
    """The table as a page."""
    columns, lines = score_cells(ring, rows)
    more, costs = cost_cells(rows)
    page = [
        f"# Arena: {ring.info.name} x{ring.info.scale}",
        "",
        f"| {' | '.join([*columns, *more[2:]])} |",
        "|---" + "|---:" * (len(columns) + len(more) - 3) + "|",
        *(f"| {' | '.join([*line, *cost[2:]])} |" for line, cost in zip(lines, costs, strict=True)),
        "",
        *(f"- {note}" for note in notes(ring, rows)),
        "",
        f"![validation PSNR by step]({PLOT_FILE})",
    ]
    return "\n".join(page) + "\n"


def flat(ring: Ring, rows: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """Columns and lines of the CSV; empty fields where there is no number."""
    lines: list[dict[str, object]] = []
    for row in rows:
        told: dict[str, object] = {"entry": row.entry, "method": row.method, "bits": row.bits}
        told |= {"seeds": " ".join(map(str, row.seeds)), "seeds_planned": row.planned}
        for one in ring.sets:
            for kind in SETS:
                told |= _numbers(f"{one.name}_{kind}", getattr(row, kind).get(one.name))
        told |= _numbers("validation_psnr", row.validation)
        for name in ("weight_levels", "activation_levels", "offset_tensors", "bit_operations", "storage_bytes"):
            told[name] = row.largest(name)
        told |= {name: row.median(name) for name in ("step_ms", "peak_megabytes")}
        told |= dict(zip(("steps", "batch", "patch"), row.budget or (0, "", ""), strict=True))
        told["gradient_steps"] = row.largest("gradient_steps")
        told |= {"engine": " ".join(row.engines), "protocol": "; ".join(row.protocols)}
        told |= {"kernel": row.kernel, "devices": "; ".join(row.devices())}
        told |= {"placement": "; ".join(row.told_once("placement"))}
        told["sha256"] = "; ".join(result.sha256 for result in row.results)
        lines.append({**told, "unequal": "; ".join(row.unequal)})
    return [*lines[0]], [["" if value is None else value for value in line.values()] for line in lines]


def data(ring: Ring, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything as plain data, seed by seed too."""
    return {
        "notes": notes(ring, rows),
        "rows": [
            {
                "entry": row.entry,
                "method": row.method,
                "bits": row.bits,
                "seeds": list(row.seeds),
                "seeds_planned": row.planned,
                **{kind: {name: _plain(one) for name, one in getattr(row, kind).items()} for kind in SETS},
                "validation_psnr": None if row.validation is None else _plain(row.validation),
                "engines": list(row.engines),
                "budget": None
                if row.budget is None
                else dict(zip(("steps", "batch", "patch"), row.budget, strict=True)),
                "kernel": row.kernel,
                "protocols": list(row.protocols),
                "unequal": list(row.unequal),
                "results": [
                    {"seed": seed, **result.model_dump(mode="json")}
                    for seed, result in zip(row.seeds or (None,) * len(row.results), row.results, strict=True)
                ],
            }
            for row in rows
        ],
    }


def plot(ring: Ring, points: Sequence[Point], path: Path) -> None:
    """Validation PSNR by step: a panel for each bit width, a line and the band of all seeds for each entry.

    Raises:
        UserError: matplotlib is not installed, or the path cannot be written.
    """
    check_plot("an arena")
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    widths, names = ring.arena.arena.bits, [entry.name for entry in ring.arena.entry]
    colours = colormaps["tab10" if len(names) <= colormaps["tab10"].N else "tab20"]
    figure = Figure(figsize=(2 + 5 * len(widths), 4.2), layout="constrained")
    told: dict[str, Any] = {}
    for axes, bits in zip(figure.subplots(1, len(widths), squeeze=False)[0], widths, strict=True):
        for number, name in enumerate(names):
            own = sorted((p for p in points if (p.bits, p.entry) == (bits, name)), key=lambda p: p.step)
            colour = colours(number % colours.N)
            if len(own) == 1 and own[0].step == 0:
                axes.axhline(own[0].mean, color=colour, linestyle="--", label=name)
                axes.axhspan(own[0].lowest, own[0].highest, color=colour, alpha=0.2, linewidth=0)
            elif own:
                at = [p.step for p in own]
                axes.plot(at, [p.mean for p in own], color=colour, marker=".", label=name)
                axes.fill_between(at, [p.lowest for p in own], [p.highest for p in own], color=colour, alpha=0.2, lw=0)
        for point in points:
            if point.bits == FLOAT_BITS:
                axes.axhline(point.mean, color="grey", linestyle=":", label=point.entry)
        axes.set_title(f"{bits} bit")
        axes.set_xlabel("step")
        axes.set_ylabel("validation PSNR in dB")
        axes.grid(visible=True, alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        told |= zip(labels, handles, strict=True)
    if told:
        figure.legend([*told.values()], [*told], loc="outside right upper", fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})


def _score_line(row: Row, sets: Sequence[str]) -> list[str]:
    done = str(len(row.results))
    kinds = tuple(zip(SETS, (3, 4), strict=True))
    engines = ", ".join(_SIMULATED if engine == SIMULATION else engine for engine in row.engines)
    return [
        row.entry + _MARK * bool(row.unequal),
        str(row.bits),
        _NOT_THERE if row.bits == FLOAT_BITS else done if done == str(row.planned) else f"{done} of {row.planned}",
        *(_spread(getattr(row, kind).get(name), digits) for name in sets for kind, digits in kinds),
        _spread(row.validation, 3),
        engines or _NOT_THERE,
    ]


def _cost_line(row: Row) -> list[str]:
    levels = [row.largest(name) for name in ("weight_levels", "activation_levels")]
    return [
        row.entry + _MARK * bool(row.unequal),
        str(row.bits),
        _NOT_THERE if None in levels else "/".join(map(str, levels)),
        _scaled(row.largest("bit_operations"), 1e9, 0),
        _scaled(row.largest("storage_bytes"), 1e3, 1),
        _gradient_steps(row),
        _scaled(row.median("step_ms"), 1, 1),
        _scaled(row.median("peak_megabytes"), 1, 0),
    ]


def _gradient_steps(row: Row) -> str:
    """Those of the optimiser, of all steps where they are fewer."""
    learnt = row.largest("gradient_steps")
    if learnt is None:
        return _NOT_THERE
    every = 0 if row.budget is None else row.budget[0]
    return str(learnt) if learnt == every else f"{learnt}/{every}"


def _spread(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return _NOT_THERE
    mean = f"{spread.mean:.{digits}f}"
    return mean if spread.deviation is None else f"{mean} +- {spread.deviation:.{digits}f}"


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return _NOT_THERE if value is None else f"{value / unit:.{digits}f}"


def _numbers(name: str, spread: Spread | None) -> dict[str, object]:
    if spread is None:
        return {name: None, f"{name}_deviation": None}
    deviation = None if spread.deviation is None else f"{spread.deviation:.5f}"
    return {name: f"{spread.mean:.5f}", f"{name}_deviation": deviation}


def _plain(spread: Spread) -> dict[str, float | str | None]:
    mean = spread.mean if math.isfinite(spread.mean) else "inf"
    return {"mean": mean, "deviation": spread.deviation}


def _csv(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()
