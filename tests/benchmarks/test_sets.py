"""FID and KID against closed forms, features that are kept, and a saturated copy that raises the alarm."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_clips
import torch
from PIL import Image, ImageEnhance
from safetensors.torch import load_file, save_file
from shapes_builder.sampling import BASE_STYLE, sample_scenes

from diffpo.benchmarks.sets.distances import frechet_distance, kernel_distance, mmd
from diffpo.benchmarks.sets.features import ClipFeatures, Inception, Looks, folder_features, resized
from diffpo.benchmarks.sets.run import _drift, compare_sets, mean_pair_distance
from diffpo.commands.set_metrics import run_set_metrics
from diffpo.errors import UserError
from diffpo.media.folder import Media, read_media, write_manifest
from diffpo.media.frames import Clip as Frames
from diffpo.media.frames import encode
from diffpo.scorers.clip import Clip
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import parse_caption, sample_prompts


def whitened(n, d, seed):
    """Numbers `[n d]` whose mean is exactly 0 and covariance exactly 1."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_fid_of_known_means_and_covariances():
    """Diagonal covariances: |m - n|^2 + sum of (s_i - t_i)^2 of the standard deviations."""
    x = whitened(50, 3, 0) * [1.0, 2.0, 3.0] + [0.0, 1.0, 0.0]
    y = whitened(70, 3, 1) * [2.0, 2.0, 0.5] + [1.0, 1.0, -2.0]
    assert frechet_distance(x, y) == pytest.approx((1 + 0 + 4) + (1 + 0 + 6.25))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_fid_of_covariances_that_do_not_commute():
    from scipy.linalg import sqrtm

    generator = np.random.default_rng(2)
    x, y = (generator.normal(size=(60, 5)) @ generator.normal(size=(5, 5)) for _ in range(2))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected)
    assert frechet_distance(y, x) == pytest.approx(expected)


def test_fid_of_fewer_images_than_features():
    """Shifted by (1, 0, ...), nothing else: 1, however singular the covariance."""
    x = np.random.default_rng(3).normal(size=(5, 40))
    assert frechet_distance(x, x + np.eye(40)[0]) == pytest.approx(1)


def test_mmd_by_hand():
    """k(x, y) = (x y + 1)^3. Within {0, 1}: 1. Within {1, 2}: 27. Between: 1, 1, 8, 27. 1 + 27 - 2 (37 / 4) = 9.5"""
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert mmd(x, y, np.array([0, 1]), np.array([2, 3])) == pytest.approx(9.5)
    # Of the same two prompts: (0, 1) and (1, 2) stay out. 1 + 27 - 2 (1 + 8) / 2 = 19
    assert mmd(x, y, np.array([0, 1]), np.array([0, 1])) == pytest.approx(19)
    assert np.isnan(mmd(x, y, np.array([0, 0]), np.array([1, 1])))


def test_mmd_divides_by_the_number_of_features():
    """k(x, y) = (x.y / 2 + 1)^3 of two numbers. Within (0, 0), (2, 0): 1. Within (2, 2), (0, 2): (4 / 2 + 1)^3 = 27.

    Between: (0, 0) gives 1 twice; (2, 0).(2, 2) is 4, so 27; (2, 0).(0, 2) is 0, so 1. 1 + 27 - 2 (30 / 4) = 13.
    Without the division it would be 1 + 125 - 2 (128 / 4) = 62.
    """
    x, y = np.array([[0.0, 0], [2, 0]]), np.array([[2.0, 2], [0, 2]])
    assert mmd(x, y, np.array([0, 1]), np.array([2, 3])) == pytest.approx(13)
    kid = kernel_distance(np.tile(x, (2, 1)), np.tile(y, (2, 1)), subsets=1)
    repeated = kernel_distance(np.tile(x, (2, 3)), np.tile(y, (2, 3)), subsets=1)
    assert kid.mean == pytest.approx(repeated.mean), "each feature three times changes nothing"


def test_kid_of_two_models_on_the_same_prompts_is_unbiased():
    """Both draw around what the prompts ask for, alike: counted as independent, they seem closer than equal."""
    generator, right, naive, prompts = np.random.default_rng(6), [], [], np.repeat(np.arange(20), 3).tolist()
    for i in range(100):
        asked = np.repeat(generator.normal(size=(20, 8)), 3, axis=0)
        x, y = asked + 0.3 * generator.normal(size=(2, 60, 8))
        right.append(kernel_distance(x, y, (prompts, prompts), subsets=5, seed=i).mean)
        naive.append(kernel_distance(x, y, subsets=5, seed=i).mean)
    error = np.std(right) / 10
    assert abs(np.mean(right)) < 3 * error and np.mean(naive) < -5 * error
    with pytest.raises(ValueError, match="two different prompts"):
        kernel_distance(x, y, (["p"] * 60, ["p"] * 60))


def test_kid_is_unbiased_where_nothing_differs():
    generator = np.random.default_rng(4)
    found = [kernel_distance(*generator.normal(size=(2, 40, 8)), subsets=5, seed=i).mean for i in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)
    assert min(found) < 0 < max(found)
    x = generator.normal(size=(2, 60, 8))
    near, far = kernel_distance(x[0], x[1] + 0.5), kernel_distance(x[0], x[1] + 2)
    assert far.mean > 10 * near.mean > 0 and far.std > 0 and far.subset == 30
    assert kernel_distance(x[0], x[1]) == kernel_distance(x[0], x[1]) != kernel_distance(x[0], x[1], seed=1)
    assert kernel_distance(x[0], x[1], subset_size=10).subset == 10


@pytest.mark.parametrize(("x", "y"), [((1, 2), (3, 2)), ((3, 2), (3, 3)), ((3,), (3,))])
def test_what_has_no_distance(x, y):
    with pytest.raises(ValueError, match="need two sets"):
        frechet_distance(np.zeros(x), np.zeros(y))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="at least four"):
        kernel_distance(np.zeros((3, 2)), np.zeros((9, 2)))


def test_diversity_by_hand():
    """(1, 0), (0, 2), (3, 0): distances 1, 0, 1."""
    assert mean_pair_distance(np.array([[1.0, 0], [0, 2], [3, 0]])) == pytest.approx(2 / 3)
    assert mean_pair_distance(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(2)


def test_looks_by_hand():
    """Half black, half pure red: saturation 1/2; luminance 0 and 76, which is 38 from its mean."""
    image = Image.new("RGB", (64, 64))
    image.paste((255, 0, 0), (0, 0, 32, 64))
    ((saturation, contrast, size),) = Looks().features([image])
    assert (saturation, contrast) == pytest.approx((0.5, 38 / 255))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    assert Looks().features([noise])[0][2] > 2 * size > 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return ClipFeatures(model=str(tiny_clips.write_pickscore(tmp_path_factory.mktemp("clip"))), device="cpu", batch=5)


def drawn(folder, prompts=12, seeds=(0, 1, 2)):
    """A media folder of the shapes world, called like its model."""
    folder.mkdir()
    media = []
    for i, prompt in enumerate(sample_prompts("heldout", prompts)):
        for seed in seeds:
            item = Media(file=f"{i}-{seed}.png", prompt=prompt, prompt_id=i, seed=seed, model=folder.name)
            generator = torch.Generator().manual_seed(100 * i + seed)
            scene = sample_scenes([parse_caption(prompt)], generator, BASE_STYLE)[0]
            Image.fromarray(render(scene)).save(folder / item.file)
            media.append(item)
    write_manifest(folder, media)
    return folder


@pytest.fixture
def base(tmp_path):
    return drawn(tmp_path / "base")


def copied(base, name, change):
    """A folder with each image changed."""
    folder = base.parent / name
    folder.mkdir()
    media = [type(item)(**{**vars(item), "model": name}) for item in read_media(base)]
    for item in media:
        change(Image.open(base / item.file).convert("RGB")).save(folder / item.file)
    write_manifest(folder, media)
    return folder


def test_features_are_those_of_the_scorer_and_kept(base, clip):
    media = read_media(base)
    files = [item.file for item in media]
    found = folder_features(base, media, [clip, Looks()])
    images = [Image.open(base / file).convert("RGB") for file in files]
    expected = Clip(model=clip.model, device="cpu").tower.image_features(images, 32)
    assert torch.from_numpy(found["clip"]).allclose(expected, atol=1e-6) and found["looks"].shape == (36, 3)

    class Never(Looks):
        def features(self, images):
            raise AssertionError(f"{len(images)} images are known already")

    again = folder_features(base, media[::-1], [Never()])
    assert (again["looks"] == found["looks"][::-1]).all()
    Image.new("RGB", (64, 64), "blue").save(base / files[0])
    with pytest.raises(AssertionError, match="1 images"):
        folder_features(base, media, [Never()])
    assert folder_features(base, media, [Looks()])["looks"][0] == pytest.approx([1, 0, found["looks"][0][2]], abs=0.5)
    (base / files[0]).write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"{files[0]} is no readable image"):
        folder_features(base, media, [Looks()])


def test_a_clip_has_the_mean_of_its_frames(tmp_path, clip):
    frames = tuple(Image.new("RGB", (64, 64), color) for color in ("red", "black"))
    (tmp_path / "clip.png").write_bytes(encode(Frames(frames)))
    item = Media(file="clip.png", prompt="a", prompt_id=0, seed=0, model="m", frames=2)
    looks = Looks().features(frames)
    assert folder_features(tmp_path, [item], [Looks()])["looks"][0] == pytest.approx(looks.mean(0))
    assert folder_features(tmp_path, [replace(item, frames=1)], [Looks()])["looks"][0] == pytest.approx(looks[0])


def test_a_saturated_copy_raises_the_alarm(base, clip):
    vivid = copied(base, "vivid", lambda image: ImageEnhance.Color(image).enhance(2.0))
    same = copied(base, "same", lambda image: image)
    report = compare_sets([base, same, vivid], [clip])
    assert "vivid: saturation" in report.alarms and not any(alarm.startswith("same") for alarm in report.alarms)
    first, copy, tuned = report.sets
    assert first.distances == () and all(drift.change is None and drift.flag == "" for drift in first.drifts)
    assert [drift.what for drift in tuned.drifts] == ["diversity", "saturation", "contrast", "jpeg bytes per pixel"]
    assert all(drift.change.estimate == 0 and drift.flag == "" for drift in copy.drifts)
    assert copy.distances[0].fid == pytest.approx(0, abs=1e-6) and tuned.distances[0].fid > 1e-3
    assert (tuned.images, tuned.prompts, tuned.distances[0].images) == (36, 12, (36, 36))


def test_alarms_are_beyond_the_limit_drifts_are_not(base, clip):
    vivid = copied(base, "vivid", lambda image: ImageEnhance.Color(image).enhance(1.3))
    flags = {
        limit: {drift.what: drift.flag for drift in compare_sets([base, vivid], [clip], limit=limit).sets[1].drifts}
        for limit in (0.0, 5.0)
    }
    assert flags[0.0]["saturation"] == "alarm" and flags[5.0]["saturation"] == "drift"


def test_an_alarm_needs_the_near_end_of_the_interval_beyond_the_limit():
    """Half of the prompts change by 40 %, half by nothing: 20 % on average, which may be less than 10 %."""
    baseline = {str(i): 1.0 for i in range(8)}
    mixed = {str(i): 1.4 if i % 2 else 1.0 for i in range(8)}
    same = {str(i): 1.2 for i in range(8)}
    drift = {name: _drift("contrast", values, baseline, 0.1, 0) for name, values in (("mixed", mixed), ("same", same))}
    assert drift["mixed"].change.estimate == pytest.approx(0.2) == drift["same"].change.estimate
    assert 0 < drift["mixed"].change.ci_low < 0.1 < drift["mixed"].change.ci_high
    assert (drift["mixed"].flag, drift["same"].flag) == ("drift", "alarm")
    less = {name: 2 - value for name, value in same.items()}
    assert _drift("contrast", less, baseline, 0.1, 0).flag == "alarm"


def test_features_of_other_weights_are_others(base, clip, tmp_path):
    folder = tiny_clips.write_pickscore(tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    state["visual_projection.weight"] *= 2
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    other, media = replace(clip, model=str(folder)), read_media(base)[:3]
    found, doubled = (folder_features(base, media, [maker])["clip"] for maker in (clip, other))
    assert doubled == pytest.approx(2 * found, rel=1e-5)


def test_less_diversity_is_an_alarm(base, clip):
    """Each prompt's images are its first one."""
    media = {item.prompt: item.file for item in reversed(read_media(base))}
    folder = base.parent / "one"
    folder.mkdir()
    items = [type(item)(**{**vars(item), "model": "one"}) for item in read_media(base)]
    for item in items:
        Image.open(base / media[item.prompt]).save(folder / item.file)
    write_manifest(folder, items)
    report = compare_sets([base, folder], [clip])
    diversity = report.sets[1].drifts[0]
    assert diversity.mean == pytest.approx(0, abs=1e-6) and diversity.change.ci_high < 0
    assert "one: diversity" in report.alarms


def test_a_reference_is_any_folder_of_images(base, clip, tmp_path):
    real = tmp_path / "real"
    (real / "deep").mkdir(parents=True)
    for i, item in enumerate(read_media(base)[:10]):
        Image.open(base / item.file).save(real / "deep" / f"{i}.png")
    report = compare_sets([base], [clip], reference=real)
    assert report.target == str(real) and report.sets[0].distances[0].images == (36, 10)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="needs at least two images"):
        compare_sets([base], [clip], reference=tmp_path / "none")


def test_sets_that_do_not_fit(base, clip, tmp_path):
    with pytest.raises(UserError, match="label of its own"):
        compare_sets([base, base], [clip])
    other = drawn(tmp_path / "other", prompts=5)
    with pytest.raises(UserError, match="5 are common, 7 only of the one, 0 only of the other"):
        compare_sets([base, other], [clip])
    with pytest.raises(UserError, match="each once"):
        compare_sets([base], [clip, clip])


def test_one_image_per_prompt_has_no_diversity(clip, tmp_path):
    report = compare_sets([drawn(tmp_path / name, prompts=6, seeds=(0,)) for name in ("a", "b")], [clip])
    assert [drift.what for drift in report.sets[1].drifts] == ["saturation", "contrast", "jpeg bytes per pixel"]
    assert any("Diversity needs several" in note for note in report.notes)


class Layers(torch.nn.Module):
    """Stands where FID's Inception has its layers: mean and spread of each channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (3, 299, 299)
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)[:, :, None, None]


class Network(torch.nn.Module):
    """What NVIDIA's file is: a TorchScript module with `layers`."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inception_is_fed_as_clean_fid_feeds_it(tmp_path):
    torch.jit.script(Network()).save(str(tmp_path / "inception.pt"))
    maker = Inception(path=str(tmp_path / "inception.pt"), device="cpu", batch=2)
    image = Image.fromarray(np.random.default_rng(5).integers(0, 255, (80, 50, 3), dtype=np.uint8))
    found = maker.features([image, Image.new("RGB", (9, 9), "white"), image])
    assert found.shape == (3, 6) and (found[0] == found[2]).all()
    assert found[1][:3] == pytest.approx(127 / 128), "white is (255 - 128) / 128"
    assert found[0][:3] == pytest.approx((resized(image) - 128).mean((1, 2)) / 128, abs=1e-5)
    assert resized(image).shape == (3, 299, 299) and resized(image).dtype == np.float32
    assert not (resized(image) == resized(image).round()).all(), "not rounded to bytes"
    assert "blake2b:" in maker.provenance["weights"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inception_of_the_wrong_kind(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt is no TorchScript of FID's Inception"):
        Inception(path=str(tmp_path / "state.pt"), device="cpu").features([Image.new("RGB", (9, 9))])
    torch.jit.script(Layers()).save(str(tmp_path / "layers.pt"))
    with pytest.raises(UserError, match=r"layers\.pt is no TorchScript"):
        Inception(path=str(tmp_path / "layers.pt"), device="cpu").features([Image.new("RGB", (9, 9))])


def test_the_command(base, clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    vivid = copied(base, "vivid", lambda image: ImageEnhance.Color(image).enhance(2.0))
    out, spec = tmp_path / "sets.json", f"clip,model={clip.model},device=cpu"
    run_set_metrics([base, vivid], [spec], reference=None, limit=0.1, out=out)
    shown = capsys.readouterr().out
    assert "ALARM: vivid: saturation" in shown and "KID" in shown and "FID is biased for few images" in shown
    written = json.loads(out.read_text())
    assert written["format"] == "diffpo sets 1" and written["alarms"][0].startswith("vivid")
    assert written["sets"][1]["distances"][0]["kid"]["subset"] == 18
    assert written["provenance"]["clip"]["weights"].startswith("blake2b:")
    with pytest.raises(UserError, match="unknown kind of features 'clop'"):
        run_set_metrics([base], ["clop"], reference=None, limit=0.1, out=out)
    with pytest.raises(UserError, match="no folder"):
        run_set_metrics([base], [spec], reference=None, limit=0.1, out=tmp_path / "x" / "y.json")
