"""From a cell to pixels: decoding, and the geometry that both images of a pair share."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from diffpo.data import Pairs
from diffpo.data.images import choose_target, draw_window, target_sizes
from diffpo.data.images import prepare as prepare_clip
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, decode


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def source(**fields):
    return Pairs(path="unused", **fields)


def prepare(image, target, index, settings, seed):
    """Prepare an image as the clip of one frame that it is."""
    return prepare_clip([image], 1, target, draw_window(settings, seed, index))


@pytest.fixture
def photo():
    """A smooth picture without symmetry."""
    y, x = np.mgrid[0:90, 0:120]
    return Image.fromarray(np.stack([x * 2, y * 2, (x + y) % 256], axis=2).astype(np.uint8))


def test_every_kind_of_cell_decodes_to_the_same(photo, tmp_path):
    data, path = encoded(photo), tmp_path / "photo.png"
    path.write_bytes(data)
    for cell in (
        data,
        str(path),
        {"bytes": data, "path": None},
        {"bytes": data, "path": "gone.png"},
        {"bytes": None, "path": str(path)},
    ):
        assert decode(cell).tobytes() == photo.tobytes()


def test_orientation_is_applied(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right by 90 degrees
    assert decode(encoded(photo, exif=exif)).tobytes() == photo.rotate(-90, expand=True).tobytes()


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    assert list(decode(encoded(image)).get_flattened_data()) == [(255, 0, 0), (255, 255, 255)]
    palette = image.convert("P")
    assert decode(encoded(palette, transparency=palette.getpixel((1, 0)))).getpixel((1, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_brightness():
    grey = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert [pixel[0] for pixel in decode(encoded(grey)).get_flattened_data()] == [0, 128, 255]


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_other_modes_become_rgb(mode, photo):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert decode(encoded(photo.convert(mode), kind)).mode == "RGB"


def test_what_cannot_be_decoded_is_broken(photo, tmp_path):
    data = encoded(photo)
    cells = {
        "not an image": b"text",
        "No such file": str(tmp_path / "gone.png"),
        "empty": {"bytes": None, "path": None},
        "truncated": data[: len(data) // 2],
        "longer than 16:1": encoded(Image.new("RGB", (1700, 100))),
        "TypeError": 7,
    }
    for reason, cell in cells.items():
        with pytest.raises(BrokenImage, match=reason):
            decode(cell)


def test_center_crop_by_hand(photo):
    prepared = prepare(photo, (45, 45), 0, source(), seed=0)
    resized = photo.resize((60, 45), Image.Resampling.LANCZOS)  # the shorter edge, 90, becomes 45
    wanted = torch.from_numpy(np.array(resized.crop((8, 0, 53, 45))))
    assert torch.equal(prepared.frames[:, 0], wanted.permute(2, 0, 1))
    assert prepared.frames.dtype == torch.uint8
    assert prepared.size.tolist() == [90, 120, 0, 8, 45, 45]
    assert prepared.size.dtype == torch.int64


def test_pixels_stay_what_they_are():
    image = Image.new("RGB", (4, 4), "white")
    image.putpixel((0, 0), (0, 0, 0))
    pixels = prepare(image, (4, 4), 0, source(), seed=0).frames[:, 0]
    assert (pixels[:, 0, 0] == 0).all()
    assert (pixels.reshape(3, -1)[:, 1:] == 255).all()


def test_flip_and_crop_are_the_same_for_both_images(photo):
    settings = source(crop="random", flip=True)
    larger = photo.resize((240, 180), Image.Resampling.LANCZOS)
    lefts, flips = set(), set()
    for index in range(40):
        one, other = (prepare(image, (45, 45), index, settings, seed=3) for image in (photo, larger))
        assert one.size[2:].tolist() == other.size[2:].tolist()
        assert (one.frames[:, 0].float() - other.frames[:, 0]).abs().mean() < 2.5
        lefts.add(one.size[3].item())
        flips.add((one.frames[:, 0][0, 0, 0] > one.frames[:, 0][0, 0, -1]).item())
    assert lefts <= set(range(16))
    assert len(lefts) > 8
    assert flips == {False, True}


def test_the_crop_is_counted_in_the_flipped_image(photo):
    settings = source(crop="random", flip=True)
    flipped = next(
        i for i in range(40) if (p := prepare(photo, (45, 45), i, settings, 0).frames[0, 0])[0, 0] > p[0, -1]
    )
    prepared = prepare(photo, (45, 45), flipped, settings, seed=0)
    _, _, top, left, _, _ = prepared.size.tolist()
    mirrored = ImageOps.mirror(photo.resize((60, 45), Image.Resampling.LANCZOS))
    wanted = np.array(mirrored.crop((left, top, left + 45, top + 45)))
    assert torch.equal(prepared.frames[:, 0], torch.from_numpy(wanted).permute(2, 0, 1))


def test_the_window_depends_on_the_seed(photo):
    settings = source(crop="random")
    lefts = [[prepare(photo, (45, 45), i, settings, seed).size[3].item() for i in range(20)] for seed in (0, 1)]
    assert lefts[0] != lefts[1]


def test_small_images_are_enlarged_until_they_cover_the_target():
    prepared = prepare(Image.new("RGB", (7, 5)), (64, 64), 0, source(), seed=0)
    assert prepared.frames.shape == (3, 1, 64, 64)


def test_a_resolution_that_the_encoder_cannot_take_names_its_neighbours():
    assert target_sizes(source(resolution=512), 8) == [(512, 512)]
    with pytest.raises(
        UserError, match=r"resolution=500 does not fit this model: it takes multiples of 16. Use 496 or 512"
    ):
        target_sizes(source(resolution=500), 16)
    with pytest.raises(UserError, match=r"Use 16.$"):
        target_sizes(source(resolution=8), 16)


@pytest.mark.parametrize(("resolution", "multiple"), [(64, 8), (512, 8), (1024, 16), (1000, 64)])
def test_buckets_have_about_the_same_area(resolution, multiple):
    sizes = target_sizes(source(resolution=resolution, buckets=True), multiple)
    assert len(sizes) == len(set(sizes)) >= 5
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert abs(math.log(height * width / resolution**2)) < 2 * multiple / min(height, width)
    assert sorted(sizes) == sorted((width, height) for height, width in sizes)


def test_an_image_gets_the_bucket_of_its_aspect():
    sizes = target_sizes(source(resolution=512, buckets=True), 8)
    assert choose_target(sizes, 600, 600) == (512, 512)
    assert choose_target(sizes, 90, 160) == (384, 680)
    assert choose_target(sizes, 1000, 100) == (728, 360)
    assert choose_target(sizes, 200, 400) == (360, 728)
    assert choose_target(sizes, 300, 200) == (624, 416)


def test_every_frame_of_a_clip_is_cut_alike(photo):
    """Frames of one picture give the picture's pixels, as often as there are frames."""
    settings = source(crop="random", flip=True)
    clip = prepare_clip([photo] * 3, 3, (45, 30), draw_window(settings, 1, 2))
    alone = prepare(photo, (45, 30), 2, settings, 1)
    assert clip.frames.shape == (3, 3, 45, 30) and torch.equal(clip.size, alone.size)
    assert all(torch.equal(clip.frames[:, i], alone.frames[:, 0]) for i in range(3))


@pytest.mark.parametrize(("size", "target"), [((120, 90), (64, 32)), ((90, 120), (32, 64)), ((200, 90), (48, 64))])
def test_the_window_lies_in_the_resized_image_along_both_axes(size, target):
    """A picture whose colours are its coordinates tells where the window is, also where the target is no square."""
    x, y = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    image = Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8))
    height, width = target
    scale = max(height / size[1], width / size[0])
    room = round(size[1] * scale) - height, round(size[0] * scale) - width
    for index in range(20):
        window = draw_window(source(crop="random"), 5, index)
        prepared = prepare(image, target, index, source(crop="random"), 5)
        top, left = prepared.size[2:4].tolist()
        assert (top, left) == (round(window.top * room[0]), round(window.left * room[1]))
        corner = prepared.frames[:2, 0, 0, 0]
        expected = [250 * left / (round(size[0] * scale) - 1), 250 * top / (round(size[1] * scale) - 1)]
        assert corner.tolist() == pytest.approx(expected, abs=6)


def test_half_of_the_pairs_are_flipped_and_windows_are_anywhere():
    settings = source(crop="random", flip=True)
    windows = [draw_window(settings, 0, i) for i in range(1000)]
    assert 450 < sum(window.flip for window in windows) < 550
    for name in ("top", "left"):
        drawn = np.array([getattr(window, name) for window in windows])
        assert np.abs(np.quantile(drawn, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.06
    assert len({(draw_window(settings, seed, 3)) for seed in range(20)}) == 20
