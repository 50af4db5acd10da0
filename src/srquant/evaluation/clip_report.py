"""A clip study for people: Markdown, CSV and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from srquant.evaluation.clip_rows import FLOAT, SCORES, SETS, Row, Study
from srquant.evaluation.plots import check_plot
from srquant.files import atomic_path

REPORT_FILE = "study.md"
TABLE_FILE = "study.csv"
PLOT_FILE = "plot.png"
SHEET_FILE = "patches.png"

_COLUMNS = ("clip", "output", "pictures", "mode", "used", "lower", "upper", *SCORES, "bytes", "operations", "refused")
_MARKS = {
    ("removed", "given"): "o",
    ("removed", "calibrated"): "s",
    ("kept", "given"): "+",
    ("kept", "calibrated"): "x",
}


def save_report(study: Study, folder: Path) -> list[Path]:
    """Write the tables and the plot of a study; returns their paths.

    Raises:
        UserError: matplotlib is not installed, or the folder cannot be written.
    """
    paths = [folder / name for name in (REPORT_FILE, TABLE_FILE, PLOT_FILE)]
    with atomic_path(paths[0]) as temporary:
        temporary.write_text(markdown(study), encoding="utf-8")
    with atomic_path(paths[1]) as temporary:
        temporary.write_text(table(study), encoding="utf-8")
    plot(study, paths[2])
    return paths


def markdown(study: Study) -> str:
    """The study as a page."""
    facts = study.facts
    lines = [
        f"# Clip study: {facts['network']} x{facts['scale']}",
        "",
        f"All scores are means over the {facts['set_pictures']} pictures of {facts['set']} and hold for this set; "
        f"times hold for the machine they were taken on. Weights {facts['weights_sha256'][:16]}, "
        f"srquant {facts['srquant']}, 8 bit, ranges {facts['ranges']}, channels not equalised, "
        f"crops of {facts['calibration']['crop']}, scores by the engine {facts['engine']}.",
        "",
        *(f"- {protocol}" for protocol in facts["protocols"]),
        "",
        "Mode `range`: the output's grid is given, 0..255. `min-max`, `select`, `tame`: it is calibrated, on pictures "
        "as they are, on those without overshoot, on tamed ones; such files end in one step more.",
        "",
        "| clip | mode | pictures | output before it is a picture | PSNR RGB | SSIM RGB | PSNR Y | SSIM Y |",
        "|---|---|---|---|---|---|---|---|",
        f"| as trained | {FLOAT} | - | - | {_numbers(study.float_scores)} |",
        *(_line(row) for row in study.rows),
        "",
        *_sizes(study),
        *_times(study),
        f"![scores]({PLOT_FILE})",
        "",
        f"![patches that lost most]({SHEET_FILE})",
    ]
    return "\n".join(lines) + "\n"


def table(study: Study) -> str:
    """The rows as CSV; empty fields where there is no number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in study.rows:
        one = row.variant
        scores = [row.scores.get(name, "") for name in SCORES]
        ends = row.range or ("", "")
        choices = [one.clip, one.output, one.pictures, one.mode, row.used]
        writer.writerow([*choices, *ends, *scores, row.bytes, row.operations, row.refused])
    return text.getvalue()


def plot(study: Study, path: Path) -> None:
    """PSNR on RGB by calibration pictures, one mark for each form.

    Raises:
        UserError: matplotlib is not installed, or the path cannot be written.
    """
    check_plot("a clip study")
    from matplotlib.figure import Figure

    sets = [name for name in SETS if any(row.variant.pictures == name for row in study.rows)]
    figure = Figure(figsize=(8, 0.5 * len(sets) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    for (clip, output), mark in _MARKS.items():
        rows = [r for r in study.rows if (r.variant.clip, r.variant.output) == (clip, output) and r.scores]
        heights = [sets.index(row.variant.pictures) for row in rows]
        axes.plot([row.scores["psnr_rgb"] for row in rows], heights, mark, label=f"clip {clip}, output {output}")
    axes.axvline(study.float_scores["psnr_rgb"], linestyle=":", color="grey", label=FLOAT)
    axes.set_yticks(range(len(sets)), sets)
    axes.invert_yaxis()
    axes.set_xlabel(f"PSNR on RGB in dB, mean over {study.facts['set']}")
    axes.set_title(f"{study.facts['network']} x{study.facts['scale']} at 8 bit, by calibration pictures")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})


def _line(row: Row) -> str:
    one = row.variant
    ends = "0..255, given" if row.range is None else f"{row.range[0]:.1f}..{row.range[1]:.1f}"
    start = f"| {one.clip} | {one.mode} | {one.pictures} ({row.used}) |"
    if row.refused:
        return f"{start} {row.refused} | | | | |"
    return f"{start} {ends} | {_numbers(row.scores)} |"


def _numbers(scores: Mapping[str, float]) -> str:
    return " | ".join(f"{scores[name]:.{3 if name.startswith('psnr') else 4}f}" for name in SCORES)


def _sizes(study: Study) -> list[str]:
    sizes = {row.variant.form: (row.bytes, row.operations) for row in study.rows if row.operations}
    return [
        *(f"- {form}: {count} operations, {size / 1000:.1f} kB of weights" for form, (size, count) in sizes.items()),
        "",
    ]


def _times(study: Study) -> list[str]:
    """Milliseconds by form and engine."""
    engines = sorted({engine for times in study.times.values() for engine in times})
    facts = study.facts
    said = "all threads" if facts["threads"] is None else f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    return [
        f"Median of {facts['rounds']} interleaved runs in ms, {facts['width']}x{facts['height']} enlarged, {said}:",
        "",
        f"| form | {' | '.join(engines)} |",
        "|---|" + "---|" * len(engines),
        *(
            f"| {form} | " + " | ".join(f"{times[e]:.1f}" if e in times else "-" for e in engines) + " |"
            for form, times in study.times.items()
        ),
        "",
    ]
