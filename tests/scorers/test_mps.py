"""MPS: which tokens count, worked by hand; the whole against its published forward pass under the published names."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import clip_config, clip_tokenizer
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from diffpo.errors import ConfigError, UserError
from diffpo.scorers.mps import MPS, OVERALL, split_state
from diffpo.scorers.mps_network import relevant_tokens, rotary_speeds, rotate

WIDTH, HEADS, CHANNELS, HIDDEN, SIDE = 40, 3, 8, 56, 16
PROMPTS = ["a red cat", "the moon over a very wide and quiet sea", "", "a red cat"]


def test_a_token_counts_if_it_is_relevant_beside_the_most_relevant_one():
    """Condition tokens (1, 0) and (0, 2). First prompt: products 4, 1, -1, largest per token 4, 2, 0 -> 1, 1/2, 0.

    Second prompt, with small numbers: 0.1, 0.02, 0.04 -> 1, 0.2, 0.4. Divided by the batch's 4, as the authors do, none
    of its tokens would pass 0.3.
    """
    condition = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    text = torch.tensor([[[4.0, 1.0], [1.0, 1.0], [-1.0, 0.0]], [[0.1, 0.0], [0.0, 0.01], [0.04, -1.0]]])
    assert relevant_tokens(text, condition, 0.3).tolist() == [[True, True, False], [True, False, True]]
    assert relevant_tokens(text, condition, 0.5).tolist() == [[True, False, False], [True, False, False]]
    assert relevant_tokens(text, condition, 0.01).tolist() == [[True, True, False], [True, True, True]]


def test_a_prompt_that_nothing_fits_keeps_its_tokens():
    """All products are negative: divided by the largest, -1, they are 1 and more, as in the authors' code."""
    text = torch.tensor([[[-1.0], [-2.0]]])
    assert relevant_tokens(text, torch.ones(1, 1), 0.3).all()


def test_rotary_positions_by_hand():
    """Two channels turn by their position in radians: (1, 0) at position 2 becomes (cos 2, sin 2)."""
    turned = rotate(torch.tensor([[[1.0, 0.0]] * 3]), torch.ones(1))
    torch.testing.assert_close(turned[0, 2], torch.tensor([math.cos(2), math.sin(2)]))
    torch.testing.assert_close(turned[0, 0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(rotary_speeds(4), torch.tensor([1.0, 0.01]))


def test_the_product_of_position_and_speed_has_the_speeds_precision():
    """1/3 in half precision is 0.33325; three times that is 0.99976, and 1 after rounding."""
    speed = torch.tensor([1 / 3]).half()
    assert 3 * speed.item() == 0.999755859375
    turned = [rotate(torch.tensor([[[1.0, 0.0]] * 4]), given)[0, 3, 0].item() for given in (speed, speed.float())]
    assert turned == pytest.approx([math.cos(1), math.cos(0.999755859375)], abs=1e-7)


class Norm(nn.Module):
    """The authors' layer norm: its bias is a buffer of zeros."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(1 + torch.rand(WIDTH))
        self.register_buffer("bias", torch.zeros(WIDTH))

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.fn = inner

    def forward(self, x, *others):
        return self.fn(x, *others) + x


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def gated(x):
    half = x.shape[-1] // 2
    return x[..., half:] * torch.sigmoid(x[..., half:]) * x[..., :half]


def heads_of(query, key, value, mask):
    """One head at a time, all with the same key and value."""
    outputs = []
    for one in query.split(CHANNELS, dim=-1):
        weights = (torch.einsum("bic,bjc->bij", one, key) / math.sqrt(CHANNELS) + mask).softmax(-1)
        outputs.append(torch.einsum("bij,bjc->bic", weights, value))
    return torch.cat(outputs, -1)


class Cross(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = Norm()
        self.to_q, self.to_kv = linear(WIDTH, HEADS * CHANNELS), linear(WIDTH, 2 * CHANNELS)
        self.to_out = linear(HEADS * CHANNELS, WIDTH)
        self.ff = nn.ModuleList([linear(WIDTH, 2 * HIDDEN), nn.Identity(), linear(HIDDEN, WIDTH)])

    def forward(self, x, text, mask):
        x = self.norm(x)
        key, value = self.to_kv(text).split(CHANNELS, dim=-1)
        return self.to_out(heads_of(self.to_q(x), key, value, mask)) + self.ff[2](gated(self.ff[0](x)))


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.rotary_emb = Norm(), nn.Module()
        self.rotary_emb.register_buffer("inv_freq", 1 / 10000 ** (torch.arange(0, CHANNELS, 2).float() / CHANNELS))
        self.fused_attn_ff_proj = linear(WIDTH, HEADS * CHANNELS + 2 * CHANNELS + 2 * HIDDEN)
        self.attn_out = linear(HEADS * CHANNELS, WIDTH)
        self.ff_out = nn.ModuleList([nn.Identity(), linear(HIDDEN, WIDTH)])

    def turned(self, x):
        """Each pair of channels (c, c + d/2) as a complex number, times exp(i position frequency)."""
        half = CHANNELS // 2
        angle = torch.arange(x.shape[1])[:, None] * self.rotary_emb.inv_freq
        pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pairs.real, pairs.imag], -1)

    def forward(self, x):
        sizes = [HEADS * CHANNELS, CHANNELS, CHANNELS, 2 * HIDDEN]
        query, key, value, hidden = self.fused_attn_ff_proj(self.norm(x)).split(sizes, -1)
        query = torch.cat([self.turned(one) for one in query.split(CHANNELS, -1)], -1)
        return self.attn_out(heads_of(query, self.turned(key), value, 0.0)) + self.ff_out[1](gated(hidden))


class Reference(nn.Module):
    """The released module, small; names as in its state dict. One prompt and one image at a time."""

    def __init__(self, config):
        super().__init__()
        self.model = CLIPModel(config)
        self.cross_model = nn.Module()
        pairs = [[Residual(Cross()), Residual(Parallel())] for _ in range(2)]
        self.cross_model.layers = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def texts(self, ids):
        out = self.model.text_model(input_ids=ids)
        return self.model.text_projection(out.last_hidden_state), self.model.text_projection(out.pooler_output)

    def forward(self, pixels, ids, condition_ids, threshold):
        (text, pooled), (condition, _) = self.texts(ids), self.texts(condition_ids)
        image = self.model.visual_projection(self.model.vision_model(pixels).last_hidden_state)
        similarity = torch.einsum("bid,bjd->bji", text, condition).max(dim=1, keepdim=True)[0]
        mask = torch.where(similarity / similarity.max() > threshold, 0.0, float("-inf"))
        for cross, parallel in self.cross_model.layers:
            image = parallel(cross(image, text, mask))
        image, pooled = (x / x.norm(dim=-1, keepdim=True) for x in (image[:, 0], pooled))
        return self.model.logit_scale.exp() * (image * pooled).sum()


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=clip_config().to_dict(), vision_config=vision, projection_dim=WIDTH)
    model = Reference(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_projection.weight") or name.startswith("cross_model"):
                weight.mul_(3.0)  # scores that differ
    return model


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mps")
    reference.model.config.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    torch.save(reference.state_dict(), folder / "mps.pth")
    return folder


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in [(16, 16), (24, 20)] * 2]


@pytest.mark.parametrize(("batch", "threshold"), [(1, 0.01), (3, 0.01), (3, 0.3), (4, 0.9)])
def test_scores_are_those_of_the_published_forward_pass(reference, folder, images, batch, threshold):
    tokenizer, processor = clip_tokenizer(), CLIPImageProcessorPil.from_pretrained(folder)

    def read(text):
        return tokenizer(text, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids

    with torch.no_grad():
        expected = torch.stack(
            [
                reference(processor(image, return_tensors="pt").pixel_values, read(prompt), read(OVERALL), threshold)
                for image, prompt in zip(images, PROMPTS, strict=True)
            ]
        )
    scores = MPS(path=str(folder), device="cpu", batch=batch, threshold=threshold).score(images, PROMPTS)
    assert scores.dtype == torch.float32 and expected.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_only_where_asked(folder, images):
    full, half = (MPS(path=str(folder), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    exact, rough = full.score(images, PROMPTS), half.score(images, PROMPTS)
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0, atol=0.3)


def test_condition_and_threshold_decide_and_are_told(folder, images):
    first = MPS(path=str(folder), device="cpu", threshold=0.9)
    second = MPS(path=str(folder), device="cpu", threshold=0.9, condition="hands")
    assert not torch.allclose(first.score(images, PROMPTS), second.score(images, PROMPTS))
    assert first.provenance["condition"] == OVERALL and first.provenance["threshold"] == 0.9
    assert second.provenance["condition"] == "hands"


def test_names_of_the_hubs_copy_and_of_older_files(reference, folder, images, tmp_path):
    """With `mps.` in front, with position ids, and in a file beside which no processor lies."""
    state = {f"mps.{name}": x.contiguous() for name, x in reference.state_dict().items()}
    state["mps.model.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(state, tmp_path / "model.safetensors")
    scorer = MPS(path=str(tmp_path / "model.safetensors"), processor=str(folder), device="cpu")
    expected = MPS(path=str(folder), device="cpu").score(images, PROMPTS)
    assert torch.equal(scorer.score(images, PROMPTS), expected)
    with pytest.raises(UserError, match=r"laion/CLIP-ViT-H.*preprocessor_config\.json"):
        _ = MPS(path=str(tmp_path)).provenance


def test_what_has_its_value_by_construction_is_left_out(reference):
    names = split_state(reference.state_dict())["cross_model"]
    assert "layers.1.0.norm.weight" in names and "layers.1.1.ff_out.1.weight" in names
    assert not any(name.endswith("bias") or "fn" in name for name in names)


def test_rotary_speeds_are_the_files_own(reference):
    """A file without them gets those of the released module, which is in half precision."""
    state, name = reference.state_dict(), "layers.1.1.rotary_emb.inv_freq"
    state["cross_model.layers.1.1.fn.rotary_emb.inv_freq"] = torch.full((CHANNELS // 2,), 7.0)
    assert split_state(state)["cross_model"][name].tolist() == [7.0] * 4
    without = {key: x for key, x in state.items() if "rotary" not in key}
    assert torch.equal(split_state(without)["cross_model"][name], rotary_speeds(CHANNELS).half())


def test_a_pickled_module_is_not_opened(reference, folder, tmp_path):
    torch.save(reference, tmp_path / "MPS_overall_checkpoint.pth")
    with pytest.raises(UserError, match="holds more than tensors"):
        MPS(path=str(tmp_path), processor=str(folder), device="cpu").score([Image.new("RGB", (8, 8))], ["a"])


def test_weights_of_the_wrong_kind_or_not_whole(reference, folder, tmp_path):
    image = [Image.new("RGB", (8, 8))]
    save_file({n: x.contiguous() for n, x in reference.model.state_dict().items()}, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match=r"holds a CLIP in the layout of transformers.*, not a whole MPS"):
        MPS(path=str(tmp_path), processor=str(folder), device="cpu").score(image, ["a"])
    state = reference.state_dict()
    del state["cross_model.layers.1.1.fn.attn_out.weight"]
    torch.save(state, tmp_path / "clip.safetensors.pt")
    with pytest.raises(UserError, match=r"1 weights are missing and 0 are unknown; layers\.1\.1\.attn_out"):
        MPS(path=str(tmp_path / "clip.safetensors.pt"), processor=str(folder), device="cpu").score(image, ["a"])


def test_a_processor_of_another_model(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="is a 'bert' model, which is not CLIP's configuration"):
        MPS(path=str(folder), processor=str(tmp_path), device="cpu").score([Image.new("RGB", (8, 8))], ["a"])


def test_without_network_the_message_names_repository_file_and_local_way():
    with pytest.raises(UserError, match=r"RE-N-Y/mpsv1.*model\.safetensors.*local"):
        _ = MPS().provenance


def test_a_threshold_that_leaves_no_token():
    with pytest.raises(ConfigError, match=r"threshold is 1\.0; it must be at least 0 and below 1"):
        MPS(threshold=1.0)
