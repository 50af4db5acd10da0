"""From float weights to an 8-bit network that runs as integers, scored and seen; about a minute on two cores.

    make demo            or            python examples/demo.py [--quick] [--output FOLDER]

The network is the compact EDSR x2 of `models/`. The photographs ship with scikit-image: nine to take activation
ranges from, four others to score. Everything lands in `demo-output/`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from skimage import data

import srquant
from srquant.evaluation.verification import verify
from srquant.imaging import open_set, upscale
from srquant.metrics import Protocol, psnr, ssim
from srquant.progress import Silent

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "models" / "edsr_compact_x2.safetensors"
INTEGER_ENGINES = ("torch", "onnxruntime", "openvino")
CROP, ZOOM = 96, 3

CALIBRATION = ["brick", "camera", "coins", "grass", "gravel", "hubble_deep_field", "moon", "retina", "rocket"]
HELD_OUT = {"astronaut": (122, 338), "chelsea": (101, 74), "coffee": (318, 231), "motorcycle": (158, 270)}
"""Photographs to score, never seen before, and the left upper corner of the crop worth a close look."""
SHOWN = ("motorcycle", "astronaut")

console = Console(highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one small crop, no timing")
    parser.add_argument("--output", default="demo-output", help="folder to write to")
    arguments = parser.parse_args()
    quick, folder = arguments.quick, Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1 if quick else min(2, os.cpu_count() or 1))

    step("1  Photographs of scikit-image")
    calibration, held_out = write_photographs(folder, quick=quick)
    console.print(f"to calibrate: {', '.join(names(calibration))}", soft_wrap=True)
    console.print(f"to score:     {', '.join(names(held_out))}")

    step("2  Quantise to 8 bit")
    network = srquant.load(WEIGHTS)
    # Nine pictures hold few strong edges, and these must not be clipped: keep all but 0.001 % of the values.
    quantized = srquant.quantize(
        network,
        calibration,
        srquant.QuantizationConfig(weight_bits=8, activation_bits=8, ranges="percentile", percentile=99.999),
        srquant.CalibrationConfig(images=len(names(calibration)), crop=48 if quick else 192),
    )
    artefact, exported = folder / "edsr_int8.safetensors", folder / "edsr_int8.onnx"
    srquant.save(quantized, artefact)
    console.print(f"placement:    {quantized.placement}")

    step("3  Export, and verify every engine against the integer reference")
    srquant.export(quantized, exported)
    sizes = [f"{path.name} {path.stat().st_size // 1000} kB" for path in (WEIGHTS, artefact, exported)]
    console.print(" -> ".join(sizes), soft_wrap=True)
    show_verification(quantized)

    step("4  Score on the photographs that were held out")
    scores = score_all(network, quantized, held_out)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2))

    step("5  Enlarge, and look")
    small = folder / "low-resolution" / f"{SHOWN[0]}.png"
    srquant.upscale(exported, small, folder / "enlarged.png", engine="onnxruntime", overwrite=True)
    draw_side_by_side(network, quantized, held_out, scores, quick=quick).save(folder / "side_by_side.png")
    console.print(f"by the exported file: {folder}/enlarged.png\nto compare:           {folder}/side_by_side.png")

    if not quick:
        step("6  Time float32 against int8: 320x180 -> 640x360, one thread, taking turns")
        show_timing(network, quantized, small)
    what_next(folder)


def step(title: str) -> None:
    """Begin a new part of the demo."""
    console.print(f"\n[bold cyan]{title}[/]")


def new_table(first: str, *numbers: str) -> Table:
    """A table of names and numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def names(folder: Path) -> list[str]:
    """The pictures of a folder."""
    return sorted(path.stem for path in folder.iterdir())


def photograph(name: str) -> np.ndarray:
    """A photograph of scikit-image: uint8 [H,W,3] or [H,W]."""
    return data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()


def write_photographs(folder: Path, *, quick: bool) -> tuple[Path, Path]:
    """Two folders of PNG files, to calibrate and to score; a third holds the latter at low resolution."""
    calibration, held_out, low = (folder / name for name in ("calibration", "held-out", "low-resolution"))
    for path in (calibration, held_out, low):
        path.mkdir(exist_ok=True)
    for name in CALIBRATION:
        Image.fromarray(photograph(name)).save(calibration / f"{name}.png")
    for name, (left, top) in HELD_OUT.items():
        if quick and name != SHOWN[0]:
            continue
        pixels = photograph(name)
        pixels = pixels[top : top + CROP, left : left + CROP] if quick else pixels
        Image.fromarray(pixels).save(held_out / f"{name}.png")
    for pair in open_set(held_out, 2).pairs:
        Image.fromarray(pair.load(2)[0]).save(low / f"{pair.name}.png")
    return calibration, held_out


def show_verification(quantized) -> None:
    """Every engine against the integer reference, in grey levels of the enlarged picture."""
    table = new_table("engine", "largest difference", "values that differ", "layers in float")
    for one in verify(quantized, INTEGER_ENGINES, progress=Silent()):
        said = f"{one.largest} of 255" if one.largest else "0 (bit for bit)"
        table.add_row(one.engine, said, f"{100 * one.share:.3f} %", str(len(one.left_in_float)))
    console.print(table)


def score_all(network, quantized, held_out: Path) -> dict[str, dict[str, float]]:
    """PSNR of every photograph and their mean, by what enlarged it; also printed, with the mean SSIM."""
    protocol = Protocol.standard(2)
    pairs = {pair.name: pair.load(2) for pair in open_set(held_out, 2).pairs}
    table = new_table("PSNR in dB", *pairs, "mean", "SSIM")
    scores: dict[str, dict[str, float]] = {}

    def add(title: str, by_name: dict[str, float], similarity: float) -> None:
        scores[title] = by_name | {"mean": float(np.mean(list(by_name.values())))}
        table.add_row(title, *(f"{scores[title][name]:.2f}" for name in [*pairs, "mean"]), f"{similarity:.4f}")

    bicubic = {name: (upscale(low, 2), high, protocol) for name, (low, high) in pairs.items()}
    similarity = float(np.mean([ssim(*judged) for judged in bicubic.values()]))
    add("bicubic", {name: psnr(*judged) for name, judged in bicubic.items()}, similarity)
    runs = [("float32, torch", network, "torch"), *((f"int8, {e}", quantized, e) for e in INTEGER_ENGINES)]
    for title, model, engine in runs:
        (result,) = srquant.evaluate(model, held_out, engine, threads=torch.get_num_threads()).datasets.values()
        add(title, {image.name: image.psnr for image in result.images}, result.ssim)
    console.print(table, f"[dim]{protocol}[/]", soft_wrap=True)
    return scores


def draw_side_by_side(network, quantized, held_out: Path, scores: dict[str, dict[str, float]], *, quick: bool):
    """A row per photograph: where the crop lies, bicubic, float32, int8, and what the 8 bits changed."""
    side, gap, bar = CROP * ZOOM, 14, 58
    pairs = sorted((p for p in open_set(held_out, 2).pairs if p.name in SHOWN), key=lambda p: SHOWN.index(p.name))
    sheet = Image.new("RGB", (5 * side + 6 * gap, len(pairs) * (side + bar) + gap), "#14171c")
    draw = ImageDraw.Draw(sheet)
    float_engine, integer_engine = srquant.open_engine(network, "torch"), srquant.open_engine(quantized, "onnxruntime")
    for row, pair in enumerate(pairs):
        low, high = pair.load(2)
        left, top = (0, 0) if quick else HELD_OUT[pair.name]
        box = left, top, left + CROP, top + CROP
        by_float, by_integers = float_engine.run(low), integer_engine.run(low)
        change = np.clip(128 + 16 * (by_integers.astype(int) - by_float), 0, 255).astype(np.uint8)
        score = {title: values[pair.name] for title, values in scores.items()}
        panels = [
            (overview(high, box, side), pair.name, f"{high.shape[1]} x {high.shape[0]}"),
            (upscale(low, 2), "bicubic", f"{score['bicubic']:.2f} dB"),
            (by_float, "float32", f"{score['float32, torch']:.2f} dB"),
            (by_integers, "int8", f"{score['int8, onnxruntime']:.2f} dB"),
            (change, "int8 - float32", "difference x16"),
        ]
        for column, (pixels, title, note) in enumerate(panels):
            x, y = gap + column * (side + gap), row * (side + bar)
            draw.text((x, y + 12), title, "#f2f4f8", ImageFont.load_default(20))
            draw.text((x + side, y + 16), note, "#9aa4b2", ImageFont.load_default(16), anchor="ra")
            if isinstance(pixels, np.ndarray):
                pixels = Image.fromarray(pixels).crop(box).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(pixels, (x, y + bar - gap))
    return sheet


def overview(pixels: np.ndarray, box: tuple[int, int, int, int], side: int) -> Image.Image:
    """A square of the whole photograph around the crop, with a frame where the crop lies."""
    height, width = pixels.shape[:2]
    length = min(height, width)
    left = min(max((box[0] + box[2] - length) // 2, 0), width - length)
    top = min(max((box[1] + box[3] - length) // 2, 0), height - length)
    square = Image.fromarray(pixels).crop((left, top, left + length, top + length))
    small = square.resize((side, side), Image.Resampling.LANCZOS)
    corners = [(value - start) * side // length for value, start in zip(box, (left, top, left, top), strict=True)]
    ImageDraw.Draw(small).rectangle((corners[0], corners[1], corners[2] - 1, corners[3] - 1), outline="white", width=2)
    return small


def show_timing(network, quantized, path: Path, rounds: int = 9) -> None:
    """Best and median time of every engine; rounds of all engines, so that a busy moment hits all alike."""
    torch.set_num_threads(1)
    picture = np.asarray(Image.open(path))[:180, :320]
    engines = {"float32, torch": srquant.open_engine(network, "torch")}
    engines |= {f"int8, {name}": srquant.open_engine(quantized, name, threads=1) for name in INTEGER_ENGINES}
    times: dict[str, list[float]] = {title: [] for title in engines}
    for turn in range(rounds + 1):
        order = list(engines)[turn % len(engines) :] + list(engines)[: turn % len(engines)]
        for title in order:
            start = time.perf_counter()
            engines[title].run(picture)
            times[title].append(1000 * (time.perf_counter() - start))
    best = {title: min(taken[1:]) for title, taken in times.items()}
    table = new_table("engine", "best ms", "median ms", "faster than float32")
    for title, taken in times.items():
        ratio = best["float32, torch"] / best[title]
        table.add_row(title, f"{best[title]:.0f}", f"{np.median(taken[1:]):.0f}", f"{ratio:.1f}x")
    console.print(table)


def what_next(folder: Path) -> None:
    """Commands that work from here."""
    program = os.path.relpath(Path(sys.executable).parent / "srquant")
    step("What to try next")
    for line in (
        f"{program} upscale YOUR_PICTURE.jpg -o larger.png --model {folder}/edsr_int8.onnx",
        f"{program} info {folder}/edsr_int8.safetensors",
        f"{program} quantize {os.path.relpath(WEIGHTS)} -o {folder}/edsr_int4.safetensors "
        f"--data {folder}/calibration --weight-bits 4 --activation-bits 4",
        f"{program} evaluate {folder}/edsr_int4.safetensors --data {folder}/held-out",
        "make bench",
    ):
        console.print(f"  {line}", soft_wrap=True)


if __name__ == "__main__":
    main()
