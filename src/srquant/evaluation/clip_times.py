"""The times of a clip study: every form of a file on every engine that runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from srquant.engines import Engine, Model, Pixels, installed_engines, open_engine
from srquant.errors import UserError
from srquant.evaluation.clip_rows import StudySettings
from srquant.evaluation.timing import interleaved_medians
from srquant.evaluation.verification import drawn_picture
from srquant.progress import Progress

_NOT_TIMED = ("simulate", "reference")


def picture_to_time(channels: int, settings: StudySettings) -> Pixels:
    """The drawn picture that engines are timed on: uint8 [height, width, channels].

    Raises:
        UserError: there is too little memory for it.
    """
    with _enough_memory(settings):
        return drawn_picture(channels, settings.height, settings.width)


def times(
    models: Mapping[str, Model], picture: Pixels, settings: StudySettings, progress: Progress
) -> dict[str, dict[str, float]]:
    """Median milliseconds of a run by form and engine, on every installed engine that runs the form.

    Args:
        models: by form.
        picture: from `picture_to_time`.
        settings: rounds and threads.
        progress: told of every round.

    Raises:
        UserError: there is too little memory.
    """
    engines: dict[str, Engine] = {}
    for form, model in models.items():
        for name in installed_engines():
            if name not in _NOT_TIMED:
                try:
                    engines[f"{form}|{name}"] = open_engine(model, name, threads=settings.threads)
                except UserError:
                    continue
    found: dict[str, dict[str, float]] = {}
    with _enough_memory(settings):
        medians = interleaved_medians(engines, picture, settings.rounds, progress)
    for key, median in medians.items():
        form, name = key.split("|")
        found.setdefault(form, {})[name] = median
    return found


@contextmanager
def _enough_memory(settings: StudySettings) -> Iterator[None]:
    """Tell in words where there is too little memory for the picture; PyTorch has no exception of its own for that."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(
            f"too little memory to time a picture of {settings.height}x{settings.width}: a smaller one needs less "
            "(--shape; height and width in Python)"
        ) from error
