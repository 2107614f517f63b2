"""ImageReward against its published architecture, written out in plain torch under the published names."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from diffpo.compat import ensure_torchvision
from diffpo.errors import ConfigError, UserError
from diffpo.scorers.imagereward import HUB_TOKENIZER, ImageReward, vision_name
from diffpo.scorers.pixels import resize_and_crop

VISION, TEXT, HEAD, SIDE, PATCH = 192, 128, 64, 32, 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "on", "the", "moon", "##s", ","]
PROMPTS = ["a red cat", "Dogs on the moon, " * 12, "", "[ENC] cat [DEC]"]


def attend(query, key, value, mask=0.0):
    """Attention over heads of 64 channels: [b n d] -> [b n d]."""
    q, k, v = (x.unflatten(-1, (-1, HEAD)).transpose(1, 2) for x in (query, key, value))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(HEAD) + mask).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class VisionBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(VISION, eps=1e-6), nn.LayerNorm(VISION, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(VISION, 3 * VISION), "proj": nn.Linear(VISION, VISION)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(VISION, 96), "fc2": nn.Linear(96, VISION)})

    def forward(self, x):
        x = x + self.attn["proj"](attend(*self.attn["qkv"](self.norm1(x)).chunk(3, -1)))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class Vision(nn.Module):
    """A ViT: patches, a class token in front, positions, blocks, a norm over all tokens."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, VISION))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (SIDE // PATCH) ** 2, VISION))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, VISION, PATCH, PATCH)})
        self.blocks = nn.Sequential(VisionBlock(), VisionBlock())
        self.norm = nn.LayerNorm(VISION, eps=1e-6)

    def forward(self, pixels):
        patches = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.pos_embed
        return self.norm(self.blocks(tokens))


class Output(nn.Module):
    """norm(dense(x) + residual)."""

    def __init__(self, width):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(width, TEXT), nn.LayerNorm(TEXT, eps=1e-12)

    def forward(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """BERT's attention over `context`, which the image's tokens are in cross-attention."""

    def __init__(self, context):
        super().__init__()
        widths = {"query": TEXT, "key": context, "value": context}
        self.add_module("self", nn.ModuleDict({name: nn.Linear(width, TEXT) for name, width in widths.items()}))
        self.output = Output(TEXT)

    def forward(self, x, context, mask=0.0):
        own = self.get_submodule("self")
        return self.output(attend(own["query"](x), own["key"](context), own["value"](context), mask), x)


class TextLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self):
        super().__init__()
        self.attention, self.crossattention = Attention(TEXT), Attention(VISION)
        self.intermediate, self.output = nn.ModuleDict({"dense": nn.Linear(TEXT, 80)}), Output(80)

    def forward(self, x, mask, image):
        x = self.crossattention(self.attention(x, x, mask), image)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class Text(nn.Module):
    """BERT without token types: every token sees all that are no padding, and the image."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(vocabulary, TEXT)
        self.embeddings.position_embeddings = nn.Embedding(40, TEXT)
        self.embeddings.LayerNorm = nn.LayerNorm(TEXT, eps=1e-12)
        self.embeddings.register_buffer("position_ids", torch.arange(40)[None])
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([TextLayer(), TextLayer()])})

    def forward(self, ids, attended, image):
        e = self.embeddings
        x = e.LayerNorm(e.word_embeddings(ids) + e.position_embeddings(torch.arange(ids.shape[1])))
        for layer in self.encoder["layer"]:
            x = layer(x, (1.0 - attended)[:, None, None] * -10000.0, image)
        return x


class Reference(nn.Module):
    """The published model, small; names as in ImageReward.pt."""

    def __init__(self):
        super().__init__()
        projections = {"vision_proj": nn.Linear(VISION, 8), "text_proj": nn.Linear(TEXT, 8)}
        parts = {"visual_encoder": Vision(), "text_encoder": Text(len(WORDS) + 2)}
        self.blip = nn.ModuleDict(parts | projections)
        sizes = [(TEXT, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
        first, second, third, fourth, fifth = (nn.Linear(i, o) for i, o in sizes)
        drops = [nn.Dropout(p) for p in (0.2, 0.2, 0.1)]
        self.mlp = nn.Module()
        self.mlp.layers = nn.Sequential(first, drops[0], second, drops[1], third, drops[2], fourth, fifth)

    def forward(self, pixels, ids, attended):
        states = self.blip["text_encoder"](ids, attended, self.blip["visual_encoder"](pixels))
        return (self.mlp.layers(states[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072


def tokens(prompt):
    """What BERT's tokenizer makes of PROMPTS, by hand: lower case, 35 at most, padded to 35."""
    vocabulary = [*WORDS, "[DEC]", "[ENC]"]
    pieces = " ".join(prompt.replace("Dogs", "dog ##s").replace(",", " ,").split()).split()[:33]
    ids = [vocabulary.index(piece) for piece in ("[CLS]", *pieces, "[SEP]")]
    return ids + [0] * (35 - len(ids))


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    model = Reference().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)  # scores that differ
    return model


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(reference.state_dict(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (48, 40), (40, 61), (90, 33)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.mark.parametrize("batch", [1, 3])
def test_scores_are_those_of_the_published_architecture(reference, folder, images, batch):
    ids = torch.tensor([tokens(prompt) for prompt in PROMPTS])
    pixels = torch.stack([resize_and_crop(image, SIDE) for image in images])
    with torch.no_grad():
        expected = reference(pixels, ids, (ids != 0).float())
    scores = ImageReward(path=str(folder), device="cpu", batch=batch).score(images, PROMPTS)
    assert scores.dtype == torch.float32 and expected.std() > 0.01
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_every_published_name_of_the_vision_part_has_its_place(reference):
    names = [vision_name(name) for name in reference.blip["visual_encoder"].state_dict()]
    assert len(set(names)) == len(names) and not any("blocks" in n or "attn.q" in n.replace("_attn", "") for n in names)


@pytest.mark.parametrize("size", [(224, 224), (320, 240), (304, 208), (208, 304), (333, 500), (100, 70)])
def test_preprocessing_is_torchvisions_bit_for_bit(size):
    ensure_torchvision()
    transforms = pytest.importorskip("torchvision.transforms")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    official = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(values)
    assert torch.equal(resize_and_crop(image, 224), official(image))


def test_a_file_alone_needs_a_tokenizer(folder, images, tmp_path, reference):
    state = {name: x.contiguous() for name, x in reference.state_dict().items()}
    save_file(state, tmp_path / "reward.safetensors")
    alone = ImageReward(path=str(tmp_path / "reward.safetensors"), device="cpu")
    with pytest.raises(UserError, match=rf"{HUB_TOKENIZER}.*vocab\.txt.*local folder"):
        _ = alone.provenance
    scorer = ImageReward(path=str(tmp_path / "reward.safetensors"), tokenizer=str(folder), device="cpu")
    whole = ImageReward(path=str(folder), device="cpu")
    assert torch.equal(scorer.score(images, PROMPTS), whole.score(images, PROMPTS))
    assert scorer.provenance["weights"].startswith("blake2b:")


def test_without_network_the_message_names_repository_file_and_local_way():
    with pytest.raises(UserError, match=r"THUDM/ImageReward.*ImageReward\.pt.*local"):
        _ = ImageReward().provenance


def test_a_tokenizer_of_another_vocabulary(folder, images, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]))
    with pytest.raises(UserError, match=r"has 15 tokens .* the weights have 16"):
        ImageReward(path=str(folder), tokenizer=str(tmp_path), device="cpu").score(images[:1], ["a"])


def score_changed(folder, tmp_path, change):
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "ImageReward.pt")
    scorer = ImageReward(path=str(tmp_path), tokenizer=str(folder), device="cpu")
    return scorer.score([Image.new("RGB", (8, 8))], ["a"])


def test_weights_that_are_not_whole(folder, tmp_path):
    with pytest.raises(UserError, match=r"1 weights are missing and 0 are unknown; encoder\.layer\.1\.output\.dense"):
        score_changed(folder, tmp_path, lambda s: s.pop("blip.text_encoder.encoder.layer.1.output.dense.bias"))
    with pytest.raises(UserError, match=r"not a whole ImageReward: .*word_embeddings"):
        score_changed(folder, tmp_path, lambda s: s.pop("blip.text_encoder.embeddings.word_embeddings.weight"))


def test_weights_of_the_wrong_kind(folder, tmp_path):
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "ImageReward.pt")
    with pytest.raises(UserError, match="holds an aesthetic head, not a whole ImageReward"):
        ImageReward(path=str(tmp_path), tokenizer=str(folder), device="cpu").score([Image.new("RGB", (8, 8))], ["a"])


def test_a_score_that_is_no_number_is_an_error(folder, tmp_path):
    with pytest.raises(UserError, match="imagereward scored image 0 of 1 as nan"):
        score_changed(folder, tmp_path, lambda s: s["mlp.layers.7.bias"].fill_(float("nan")))


def test_half_precision_is_close_and_says_so(folder, images):
    full, half = (ImageReward(path=str(folder), device="cpu", dtype=d) for d in ("float32", "bfloat16"))
    torch.testing.assert_close(half.score(images, PROMPTS), full.score(images, PROMPTS), rtol=0.1, atol=0.2)
    assert half.provenance["dtype"] == "bfloat16" and half.provenance != full.provenance


def test_nothing_to_score_and_no_batch(folder):
    assert ImageReward(path=str(folder), device="cpu").score([], []).shape == (0,)
    with pytest.raises(ConfigError, match="batch is 0"):
        ImageReward(batch=0)
