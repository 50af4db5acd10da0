"""Which pictures serve for what; none may serve for two things."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Sequence
from pathlib import Path

from srquant.errors import UserError
from srquant.imaging import find_pictures, open_set


def training_pictures(folders: Sequence[str | Path]) -> list[Path]:
    """The pictures directly in folders, or under `HR/` in them, as training takes them.

    Raises:
        UserError: a folder is missing or has no pictures.
    """
    places = [Path(folder) for folder in folders]
    return [path for place in places for path in find_pictures(place / "HR" if (place / "HR").is_dir() else place)]


def set_pictures(folder: str | Path) -> list[Path]:
    """The high-resolution pictures of a set to validate or score on; see `srquant.imaging.open_set`.

    Raises:
        UserError: the set cannot be opened.
    """
    return [pair.hr for pair in open_set(Path(folder), 1).pairs]


def refuse_shared(kind: str, pictures: Iterable[Path], other: str, others: Iterable[Path]) -> None:
    """A state chosen, or scored, on pictures that it was trained on tells nothing of other pictures.

    Args:
        kind: of the first pictures, for people: training, validation or benchmark.
        pictures: that may not be among the others.
        other: kind of the others.
        others: the other pictures.

    Raises:
        UserError: a picture, or a copy of its file, is in both.
    """
    sizes: dict[int, list[Path]] = {}
    for path in others:
        sizes.setdefault(path.stat().st_size, []).append(path)
    alike = ((path, seen) for path in pictures for seen in sizes.get(path.stat().st_size, ()))
    both = next((path for path, seen in alike if filecmp.cmp(path, seen, shallow=False)), None)
    if both is not None:
        raise UserError(f"the {kind} picture '{both}' is a {other} picture too; name a folder of its own")
