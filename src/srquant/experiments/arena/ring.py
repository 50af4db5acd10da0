"""An arena in its folder: what every contender came to so far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from srquant.config import Experiment
from srquant.errors import UserError
from srquant.experiments.arena.plan import Arena, Contender, contenders
from srquant.experiments.scoring import Benchmark, engine_of, find_score
from srquant.experiments.starting import start_network
from srquant.files import atomic_path
from srquant.networks.info import NetworkInfo, SRNetwork
from srquant.training import Validation

RUNS_FOLDER = "runs"
FAILURE_FILE = "failure.txt"
"""In the folder of a run: what its training ended in last, where it failed."""
_RESULT_FILE = "result.json"


class Result(BaseModel):
    """What a contender came to, scores of benchmark sets aside.

    Attributes:
        sha256: of the artefact, of the float checkpoint, or of the simulated state's list of contents.
        simulated_because: why a quantised network cannot run as integers; None where it can.
        placement: which tensors carry how many bits.
        validation_psnr: of the state that is scored, in dB, simulated in float32.
        steps: of the training, those that only gather statistics included.
        gradient_steps: of them, those that learn.
        devices: that trained it: "cpu" or the name of a CUDA device; none where nothing was trained, or recorded.
        step_ms: median milliseconds of a training step; None where nothing was timed, or on several devices.
        peak_megabytes: held in training above what was held before; None where nothing was measured, or on several
            devices.
        weight_levels: the most levels of low-bit weights in an output channel; None in float.
        activation_levels: the most levels of a low-bit tensor, of its richest channel where `offset_tensors` or the
            simulation have grids of channels; None in float.
        offset_tensors: how many deployed tensors have shifted channels.
        bit_operations: for an output of `output_size`.
        storage_bytes: of the weights, packed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    simulated_because: str | None = None
    placement: str
    validation_psnr: float
    steps: int = 0
    gradient_steps: int = 0
    devices: tuple[str, ...] = ()
    step_ms: float | None = None
    peak_megabytes: float | None = None
    weight_levels: int | None = None
    activation_levels: int | None = None
    offset_tensors: int = 0
    bit_operations: int
    storage_bytes: int


@dataclass(frozen=True)
class Ring:
    """An arena in its folder; what follows from its settings is found out once.

    Attributes:
        arena: what is compared.
        folder: where everything is kept.
        benchmarks: folders of the sets to score on.
        engine: what runs deployed networks; see `srquant.experiments.scoring.engine_of`.

    Raises:
        UserError: a set cannot be opened, or two have the same name.
    """

    arena: Arena
    folder: Path
    benchmarks: tuple[Path, ...] = ()
    engine: str = "auto"

    def __post_init__(self) -> None:
        names = [one.name for one in self.sets]
        if len(set(names)) < len(names):
            raise UserError(f"two benchmark sets have the same name: {', '.join(names)}")

    @cached_property
    def sets(self) -> tuple[Benchmark, ...]:
        """The benchmark sets."""
        return tuple(Benchmark(folder) for folder in self.benchmarks)

    @cached_property
    def contenders(self) -> tuple[Contender, ...]:
        """See `srquant.experiments.arena.plan.contenders`."""
        return tuple(contenders(self.arena))

    @cached_property
    def info(self) -> NetworkInfo:
        """Of the float network.

        Raises:
            UserError: see `network`.
        """
        return self.network().info

    def network(self) -> SRNetwork:
        """The float network that every contender starts from, anew at every call.

        Raises:
            UserError: the weights cannot be read, or are not those that the arena names.
        """
        network = self.arena.network
        assert network is not None
        digest = self.arena.weights_sha256
        return start_network(Experiment(weights=self.arena.weights, weights_sha256=digest, network=network))

    def validation(self, pictures: int | None = None) -> Validation:
        """The validation pictures.

        Args:
            pictures: how many; by default as many as for all entries.

        Raises:
            UserError: see `srquant.training.Validation`.
        """
        data, count = self.arena.data, pictures or self.arena.training.validation_pictures
        assert data.validation is not None
        return Validation(Path(data.validation), self.info.scale, count, self.info.channels)

    def run(self, contender: Contender) -> Path:
        """The folder of a contender."""
        return self.folder / RUNS_FOLDER / contender.run

    def result(self, contender: Contender) -> Result | None:
        """What a contender came to; None where it is not finished."""
        try:
            return Result.model_validate_json((self.run(contender) / _RESULT_FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def save_result(self, contender: Contender, result: Result) -> None:
        """Keep what a contender came to."""
        with atomic_path(self.run(contender) / _RESULT_FILE) as temporary:
            temporary.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def score(self, contender: Contender, result: Result, one: Benchmark) -> dict[str, Any] | None:
        """The scores of a contender on a set, as `Evaluation.to_json` tells them; None where there are none yet.

        Raises:
            UserError: the set cannot be read.
        """
        return find_score(self.run(contender), one, result.sha256, self.engine_for(contender, result))

    def engine_for(self, contender: Contender, result: Result) -> str:
        """What scores a contender."""
        quantized, simulated = contender.quantization is not None, result.simulated_because is not None
        return engine_of(self.engine, quantized=quantized, simulated=simulated)

    def finished(self, contender: Contender) -> bool:
        """Whether nothing is left to do for a contender."""
        result = self.result(contender)
        return result is not None and all(self.score(contender, result, one) for one in self.sets)
