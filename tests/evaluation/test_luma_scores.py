from __future__ import annotations

from pathlib import Path

import numpy as np
from small_quantized import noise

from srquant.evaluation.scores import Facts, evaluate_engine
from srquant.imaging import Picture, downscale, upscale, write_picture
from srquant.imaging.colour import to_rgb, to_ycbcr
from srquant.metrics import Protocol, psnr
from srquant.networks.info import NetworkInfo
from srquant.progress import Silent


class RepeatLuma:
    """An engine that repeats the pixels of luma."""

    name = "repeat"
    halo: int | None = 0
    shape: tuple[int, int] | None = None
    info = NetworkInfo(name="espcn", scale=2, channels=1, peak=1.0)

    def run(self, picture: np.ndarray) -> np.ndarray:
        assert picture.shape[2] == 1
        return picture.repeat(2, axis=0).repeat(2, axis=1)

    def left_in_float(self) -> list[str]:
        return []


def test_a_network_for_luma_is_scored_on_the_rgb_picture_as_all_others(tmp_path: Path) -> None:
    hr = noise(40, 36)
    (tmp_path / "set").mkdir()
    write_picture(tmp_path / "set" / "a.png", Picture(hr))
    told = Facts("m", None, "espcn", 2, "float32", {"weights": 32, "activations": 32})
    result = evaluate_engine(RepeatLuma(), [tmp_path / "set"], told, Silent())
    planes = to_ycbcr(downscale(hr, 2))
    luma = planes[..., :1].repeat(2, axis=0).repeat(2, axis=1)
    wanted = to_rgb(np.concatenate([luma, upscale(planes[..., 1:], 2)], axis=2))
    assert result.datasets["set"].psnr == psnr(wanted, hr, Protocol.standard(2))
    assert result.protocol == str(Protocol.standard(2))
