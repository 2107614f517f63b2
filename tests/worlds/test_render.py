"""Drawing: areas by geometry, antialiasing, determinism."""

import numpy as np
import pytest
import torch
from shapes_builder.sampling import sample_scenes, sample_specs

from diffpo.worlds.shapes.render import coverage, render, render_batch, signed_distance, to_uint8
from diffpo.worlds.shapes.scenes import SHAPES, Placement, Scene, parse_caption
from diffpo.worlds.shapes.verify import UNIT_AREA


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [6.0, 10.0, 14.0])
def test_the_covered_area_is_that_of_the_figure(shape, size):
    alpha = coverage([shape], *np.array([[31.3], [32.8], [size]]))
    assert float(alpha.sum()) == pytest.approx(UNIT_AREA[shape] * size**2, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_is_the_centroid(shape):
    alpha = coverage([shape], *np.array([[30.2], [35.6], [12.0]]))[0]
    grid = np.arange(64) + 0.5
    assert float((alpha.sum(0) * grid).sum() / alpha.sum()) == pytest.approx(30.2, abs=0.1)
    assert float((alpha.sum(1) * grid).sum() / alpha.sum()) == pytest.approx(35.6, abs=0.15)


def test_colours_are_where_the_scene_says():
    spec = parse_caption("a red circle left of a blue square on a white background")
    image = render(Scene(spec, Placement(16, 32, 8, 1.0, 1.0), Placement(48, 32, 8, 0.5, 1.0), 0.96))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert image[32, 16].tolist() == [255, 0, 0]
    assert image[2, 2].tolist() == [245, 245, 245]
    red, green, blue = image[32, 48].tolist()
    assert blue == 255 and red == 128 and 128 < green < 160  # hue 232, half saturated


def test_edges_are_antialiased():
    alpha = coverage(["circle"], *np.array([[32.0], [32.0], [10.0]]))
    assert ((alpha > 0.1) & (alpha < 0.9)).sum() > 40


def test_a_batch_is_its_images_one_by_one():
    generator = torch.Generator().manual_seed(0)
    scenes = sample_scenes(sample_specs("train", 9, generator), generator)
    batch = to_uint8(render_batch(scenes))
    assert np.array_equal(batch, np.stack([render(scene) for scene in scenes]))


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="unknown shape"):
        signed_distance("star", np.zeros(1), np.zeros(1), 1.0)
