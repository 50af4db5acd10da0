from __future__ import annotations

import numpy as np
import pytest
from upscaling_engines import BoxEngine, noise

from srquant.imaging import Picture, upscale
from srquant.imaging.colour import luma, to_rgb, to_ycbcr
from srquant.upscaling import count_runs, upscale_picture, upscale_rgb


def luma_engine() -> BoxEngine:
    return BoxEngine(channels=1)


def test_luma_goes_through_the_network_and_colour_through_bicubic() -> None:
    rgb = noise(9, 7)
    planes = to_ycbcr(rgb)
    enlarged = luma_engine().run(np.ascontiguousarray(planes[..., :1]))
    wanted = to_rgb(np.concatenate([enlarged, upscale(planes[..., 1:], 2)], axis=2))
    engine = luma_engine()
    assert np.array_equal(upscale_rgb(engine, rgb), wanted)
    assert engine.shapes == [(9, 7, 1)]
    assert np.array_equal(upscale_picture(luma_engine(), Picture(rgb, icc=b"p")).rgb, wanted)


def test_a_network_for_rgb_sees_the_colours_as_they_are() -> None:
    rgb = noise(6, 5)
    assert np.array_equal(upscale_rgb(BoxEngine(), rgb), BoxEngine().run(rgb))


def test_a_grey_picture_goes_straight_through() -> None:
    grey = noise(8, 6, 1)
    result = upscale_picture(luma_engine(), Picture(grey.repeat(3, axis=2), grey=True))
    assert result.grey
    assert np.array_equal(result.rgb, luma_engine().run(grey).repeat(3, axis=2))
    coloured = upscale_picture(luma_engine(), Picture(grey.repeat(3, axis=2)))
    assert np.array_equal(coloured.rgb, result.rgb), "a grey picture stored in colour gives the same"


def test_alpha_is_enlarged_as_luma() -> None:
    alpha = noise(6, 6, 1)
    engine = luma_engine()
    picture = Picture(noise(6, 6), alpha[..., 0])
    result = upscale_picture(engine, picture)
    assert result.alpha is not None
    assert np.array_equal(result.alpha, luma_engine().run(alpha)[..., 0])
    assert count_runs(engine, picture) == len(engine.shapes) == 2


@pytest.mark.parametrize("tile", [1, 5, 16])
def test_tiles_do_not_show(tile: int) -> None:
    picture = Picture(noise(19, 27))
    ticks: list[None] = []
    tiled = upscale_picture(luma_engine(), picture, tile, lambda: ticks.append(None))
    assert np.array_equal(tiled.rgb, upscale_picture(luma_engine(), picture, None).rgb)
    assert len(ticks) == count_runs(luma_engine(), picture, tile)


def test_a_picture_without_detail_keeps_its_colour() -> None:
    class Repeat(BoxEngine):
        def run(self, picture: np.ndarray) -> np.ndarray:
            return picture.repeat(2, axis=0).repeat(2, axis=1)

    for colour in ((200, 30, 90), (0, 0, 0), (255, 255, 255), (12, 250, 3)):
        rgb = np.full((5, 5, 3), colour, np.uint8)
        found = upscale_rgb(Repeat(channels=1), rgb)
        assert (np.abs(found.astype(int) - colour) <= 1).all()
        assert np.array_equal(luma(found), np.full((10, 10, 1), luma(found)[0, 0, 0]))
