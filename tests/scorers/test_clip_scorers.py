"""Scorers of clips: their arithmetic by hand, and real networks of their classes with small random weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clips import write_pickscore
from transformers import ViTConfig, ViTModel

from diffpo.errors import UserError
from diffpo.media.folder import Media, write_manifest
from diffpo.media.frames import Clip, encode
from diffpo.scorers import SCORERS
from diffpo.scorers.consistency import BackgroundConsistency, SubjectConsistency, consistency, resize_bytes
from diffpo.scorers.optical_flow import DynamicDegree, Motion, is_dynamic
from diffpo.scorers.scores import score_folder
from diffpo.scorers.steadiness import Flicker, SmoothnessLinear


def grey(*levels):
    return Clip(tuple(Image.new("RGB", (6, 4), (level,) * 3) for level in levels))


def noise(frames, width=40, height=24, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Clip(tuple(map(Image.fromarray, pixels)), 8.0)


def still(clip):
    return Clip(clip.frames[:1] * len(clip.frames), clip.fps)


def judge(scorer, *clips):
    return scorer.judge(clips, ["a"] * len(clips)).tolist()


def test_flicker_is_the_mean_change_of_a_pixel():
    assert judge(Flicker(), grey(90, 90, 90), grey(0, 51), grey(0, 255, 204)) == pytest.approx([1, 0.8, 1 - 0.6])


def test_smoothness_compares_every_second_frame_with_the_mean_of_its_neighbours():
    clips = grey(0, 10, 20, 30, 40), grey(0, 51, 0), grey(100, 100, 202, 253)
    assert judge(SmoothnessLinear(), *clips) == pytest.approx([1, 0.8, 0.8])


def test_consistency_by_hand():
    """Cosines: 0 and 0 for the second frame; 0.6 with the first and 0.8 with the second for the third; -1 counts 0."""
    features = torch.tensor([[2.0, 0], [0, 3], [0.6, 0.8], [-0.6, -0.8]])
    assert consistency(features) == pytest.approx((0 + (0.6 + 0.8) / 2 + 0) / 3)
    assert consistency(torch.ones(4, 5)) == pytest.approx(1)


def test_frames_are_resized_as_torchvision_resizes_bytes():
    from diffpo.compat import ensure_torchvision

    ensure_torchvision()
    transforms = pytest.importorskip("torchvision.transforms")
    frame = noise(1, 45, 31).first
    pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1)
    for mode in ("bilinear", "bicubic"):
        resize = transforms.Resize(20, transforms.InterpolationMode(mode), antialias=False)
        assert torch.equal(resize(pixels).float(), resize_bytes(frame, 20, mode)), mode


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    folder = tmp_path_factory.mktemp("dino")
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16), add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_consistency_through_real_networks(dino, tmp_path):
    """A repeated frame is 1, others are less; the size of a batch changes nothing."""
    clip = noise(3)
    for scorer in (
        SubjectConsistency(path=str(dino), device="cpu", batch=2),
        BackgroundConsistency(path=str(write_pickscore(tmp_path / "clip")), device="cpu", batch=2),
    ):
        same, others = judge(scorer, still(clip), clip)
        assert same == pytest.approx(1, abs=1e-5) and 0 < others < 1 - 1e-5, scorer.name
        assert judge(type(scorer)(path=scorer.path, device="cpu"), clip) == pytest.approx([others], abs=1e-5)
    with pytest.raises(UserError, match="'vit' model, which is not a CLIP"):
        judge(BackgroundConsistency(path=str(dino)), clip)


def test_what_is_dynamic():
    """16 frames of short side 256: four pairs need more than 6 px in the longest 5 % of their pixels, which are 5."""
    lengths = torch.zeros(15, 10, 10)
    assert not is_dynamic(lengths, 256)
    lengths[:4, 0, :5] = 6.1
    assert is_dynamic(lengths, 256) and not is_dynamic(lengths, 512) and not is_dynamic(lengths * 0.9, 256)
    lengths[3] = 0
    assert not is_dynamic(lengths, 256)
    assert not is_dynamic(torch.zeros(1, 10, 10), 256), "VBench counts a clip of two frames, whatever it shows"


@pytest.fixture(scope="module")
def raft(tmp_path_factory):
    from diffpo.compat import ensure_torchvision

    ensure_torchvision()
    flow = pytest.importorskip("torchvision.models.optical_flow")
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("raft") / "raft.pth"
    torch.save(flow.raft_small(weights=None).state_dict(), file)
    return file


def test_motion_through_the_real_raft(raft):
    """Padded to 128 x 136, the flow is that of one call for all pairs; what is too small, or still, is said."""
    clip, options = noise(4, 130, 121), {"network": "small", "path": str(raft), "updates": 2, "device": "cpu"}
    scorer = Motion(**options, batch=2)
    with torch.no_grad():
        lengths = scorer.flow_lengths(clip.frames)
        assert lengths.shape == (3, 128, 136)
        torch.testing.assert_close(lengths, Motion(**options).flow_lengths(clip.frames), rtol=1e-3, atol=1e-3)
    assert judge(scorer, clip) == pytest.approx([100 * lengths.mean().item() / 121], rel=1e-4)
    assert judge(DynamicDegree(**options), clip) == [float(is_dynamic(lengths, 121))]
    assert scorer.provenance["measures"] == "motion"
    with pytest.raises(UserError, match=r"more than 120 px.* 40 x 24.* frame-change"):
        judge(scorer, noise(2))
    with pytest.raises(UserError, match="looks at 8 frames per second"):
        judge(DynamicDegree(**options), Clip(clip.frames, 60.0))
    with pytest.raises(UserError, match=r"not a RAFT of torchvision \(network=large\)"):
        judge(Motion(path=str(raft)), clip)


@pytest.mark.parametrize("name", ["flicker", "smoothness-linear"])
def test_images_are_refused(name):
    with pytest.raises(UserError, match=f"{name} judges clips of at least . frames, and here is an image"):
        SCORERS[name]().score([Image.new("RGB", (8, 8))], ["a"])


def test_another_rate_is_another_question(raft, tmp_path):
    """The same file, said to be faster, has other frames taken: a kept score is not reused."""
    clip = noise(4, 130, 128)
    (tmp_path / "0.png").write_bytes(encode(clip))
    item = Media(file="0.png", prompt="a", prompt_id=0, seed=0, model="m", frames=4, fps=8.0)
    scorer = DynamicDegree(network="small", path=str(raft), updates=1, device="cpu")
    write_manifest(tmp_path, [item])
    assert len(score_folder(tmp_path, [scorer]).rows) == 1
    write_manifest(tmp_path, [Media(**{**vars(item), "fps": 60.0})])
    with pytest.raises(UserError, match="looks at 8 frames per second"):
        score_folder(tmp_path, [scorer])


def test_a_still_clip_wins_by_steadiness_and_motion_says_so():
    """Why motion stands beside quality: every measure of steadiness likes the frozen clip best."""
    clip = noise(5)
    for scorer in (Flicker(), SmoothnessLinear()):
        moving, frozen = judge(scorer, clip, still(clip))
        assert frozen > moving
    moving, frozen = judge(SCORERS["frame-change"](), clip, still(clip))
    assert moving > 10 and frozen == 0
