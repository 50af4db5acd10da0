"""Training pictures as batches of paired low- and high-resolution patches."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from srquant.config import TrainingConfig
from srquant.errors import UserError
from srquant.imaging import find_pictures
from srquant.imaging.colour import seen_by
from srquant.imaging.resize import check_scale
from srquant.progress import Progress, Silent
from srquant.training.cache import Entry, PictureCache, Pixels, UnreadablePictureError, default_folder
from srquant.training.patches import Lottery, cut

_AHEAD = 2
"""Batches made before they are asked for."""


class Batch(NamedTuple):
    """Paired patches: uint8 [B,p,p,C] and [B,s*p,s*p,C], C as the network takes."""

    low: Tensor
    high: Tensor


class TrainingData:
    """The usable pictures of one or several folders.

    Pictures are drawn by their area, patches evenly inside them; each is flipped along both axes and transposed
    with a chance of one half. Batch k depends on the seed, k and the pictures alone.

    Args:
        folders: HR pictures, or folders that hold them under `HR/`.
        scale: enlargement; LR is made by the protocol's bicubic.
        config: patch, batch, seed, and what to do about unreadable pictures.
        channels: of the network: 3, or 1 for the luma of the same patches.
        cache: folder of decoded pictures; default `~/.cache/srquant/pictures`.
        progress: told while pictures are decoded, and of pictures left out.

    Raises:
        UserError: a folder is missing or has no pictures, none is as large as a patch, the cache cannot be
            written, or, with `unreadable="refuse"`, a picture cannot be read.

    Attributes:
        scale: enlargement.
        config: as given.
        fingerprint: hash of the names and sizes of the pictures, independent of where they lie.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        scale: int,
        config: TrainingConfig,
        *,
        channels: int = 3,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_scale(scale)
        self.scale, self.config = scale, config
        self._channels = channels
        self._progress = progress or Silent()
        self._cache = PictureCache(cache or default_folder(), scale)
        self._maps: dict[int, tuple[Pixels, Pixels]] = {}
        self._bad: set[int] = set()
        self._entries, self._sizes = self._usable(folders)
        self._lottery = Lottery([height * width for height, width in self._sizes], config.seed)
        listing = [f"{e.picture.name} {size}" for e, size in zip(self._entries, self._sizes, strict=True)]
        self.fingerprint = hashlib.sha256("\n".join(listing).encode(errors="surrogateescape")).hexdigest()

    def __len__(self) -> int:
        return len(self._entries)

    def batch(self, step: int, places: range | None = None) -> Batch:
        """The patches of a step.

        Args:
            step: from 1.
            places: the part of the joined batch wanted; None is all of it.

        Raises:
            UserError: a picture has become unreadable (`unreadable="refuse"`), or none is readable any more.
        """
        patch = self.config.patch
        places = range(self.config.batch) if places is None else places
        low = np.empty((len(places), patch, patch, self._channels), np.uint8)
        high = np.empty((len(places), patch * self.scale, patch * self.scale, self._channels), np.uint8)
        for row, place in enumerate(places):
            low[row], high[row] = (seen_by(self._channels, part) for part in self._patch(step, place))
        return Batch(torch.from_numpy(low), torch.from_numpy(high))

    @contextmanager
    def batches(self, first: int, last: int, places: range, *, pinned: bool) -> Iterator[Iterator[Batch]]:
        """The batches of steps `first`..`last`, made by a thread a little ahead of their use.

        Args:
            first: step of the first batch.
            last: step of the last one.
            places: the part of every joined batch wanted.
            pinned: page-lock the memory, for a quick way to a GPU.
        """

        def make(step: int) -> Batch:
            batch = self.batch(step, places)
            return Batch(*(part.pin_memory() for part in batch)) if pinned else batch

        def run() -> Iterator[Batch]:
            steps = iter(range(first, last + 1))
            waiting: deque[Future[Batch]] = deque()
            for step in steps:
                waiting.append(executor.submit(make, step))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        executor = ThreadPoolExecutor(1, thread_name_prefix="patches")
        try:
            yield run()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _patch(self, step: int, place: int) -> tuple[Pixels, Pixels]:
        for attempt in range(10_000):
            draw = self._lottery.draw(step, place, attempt)
            if draw.picture in self._bad:
                continue
            try:
                low, high = self._pixels(draw.picture)
            except UnreadablePictureError as error:
                self._left_out(error)
                self._bad.add(draw.picture)
                if len(self._bad) == len(self._entries):
                    break
                continue
            return cut(draw, low, high, self.config.patch)
        raise UserError(f"no training picture can be read any more, the last was '{self._entries[-1].picture}'")

    def _pixels(self, picture: int) -> tuple[Pixels, Pixels]:
        if picture not in self._maps:
            entry = self._entries[picture]
            low, high = self._cache.load(entry)
            if low.shape[:2] != self._sizes[picture]:
                raise UnreadablePictureError(f"'{entry.picture}' has changed its size since training began")
            self._maps[picture] = low, high
        return self._maps[picture]

    def _left_out(self, error: UnreadablePictureError) -> None:
        if self.config.unreadable == "refuse":
            raise error
        self._progress.warn(f"left out: {error}")

    def _usable(self, folders: Sequence[Path]) -> tuple[list[Entry], list[tuple[int, int]]]:
        """The pictures that are readable and large enough, with the size of their LR picture."""
        if not folders:
            raise UserError("no folder of training pictures was given")
        paths = [path for folder in folders for path in find_pictures(_nested(folder))]
        found: list[tuple[Entry, tuple[int, int]]] = []
        unreadable = 0
        self._progress.start("preparing pictures", len(paths))
        executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        try:
            for outcome in executor.map(self._prepared, paths):
                if isinstance(outcome, UnreadablePictureError):
                    self._left_out(outcome)
                    unreadable += 1
                else:
                    found.append(outcome)
                self._progress.advance()
        finally:
            executor.shutdown(cancel_futures=True)
            self._progress.finish()
        patch, needed = self.config.patch, self.config.patch * self.scale
        usable = [(entry, size) for entry, size in found if min(size) >= patch]
        told = ", ".join(f"'{folder}'" for folder in folders)
        if not usable:
            raise UserError(
                f"no usable picture in {told}: {unreadable} of {len(paths)} cannot be read, {len(found)} are smaller "
                f"than a patch; {needed}x{needed} pixels are needed (patch {patch} at x{self.scale})"
            )
        if len(usable) < len(found):
            small = len(found) - len(usable)
            self._progress.warn(f"left out: {small} of {len(paths)} pictures in {told} below {needed}x{needed} pixels")
        return [entry for entry, _ in usable], [size for _, size in usable]

    def _prepared(self, path: Path) -> tuple[Entry, tuple[int, int]] | UnreadablePictureError:
        try:
            entry = self._cache.entry(path)
            return entry, self._cache.size(entry)
        except UnreadablePictureError as error:
            return error


def _nested(folder: Path) -> Path:
    return folder / "HR" if (folder / "HR").is_dir() else folder
