"""Encoders against the pipelines' own arithmetic, and the fingerprint that keeps a cache honest."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from tiny import PIPELINES
from tiny_steps import FACTS, make

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import AutoencoderKL, DiffusionPipeline  # noqa: E402

from diffpo.models.bases import find_base  # noqa: E402
from diffpo.models.encoders import Encoders, fingerprint  # noqa: E402
from diffpo.models.fitting import Fitting  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402

PROMPTS = ["a red circle", "", "word " * 40]
"""Ordinary, empty, longer than the tokenizers take."""


def encoders(folder, **more):
    return Encoders(Full(path=str(folder), **more), "cpu")


def pixels(seed: int = 0, height: int = 16, width: int = 24) -> torch.Tensor:
    return 2 * torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "pixart", "flux", "sana", "flux2"])
def test_several_together_are_what_each_is_alone(pipelines, name):
    """Two images and four prompts in one call of each encoder, to 1e-4."""
    ours = encoders(pipelines(name))
    side = ours.multiple * 2
    images = [pixels(seed, side, side).unsqueeze(1) for seed in (0, 1)]
    for together, image in zip(ours.start_media(images)(), images, strict=True):
        for ours_of, alone in zip(together, ours.encode_media(image), strict=True):
            assert ours_of.shape == alone.shape and ours_of.dtype == torch.float32
            torch.testing.assert_close(ours_of, alone, rtol=1e-4, atol=1e-4)
    prompts = [*PROMPTS, "a blue square above a green ring"]
    for together, prompt in zip(ours.encode_prompts(prompts), prompts, strict=True):
        alone = ours.encode_prompt(prompt)
        assert together.keys() == alone.keys()
        for key, x in alone.items():
            assert x.dtype == together[key].dtype
            torch.testing.assert_close(together[key], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("holds", "tried"), [(8, [7]), (3, [7, 4, 2, 2, 2, 1])])
def test_fewer_rows_are_tried_where_memory_is_full(holds, tried):
    """7 rows do not fit, nor do 4: then two at a time; nothing is lost, doubled or done again."""
    seen = []

    def work(rows):
        seen.append(len(rows))
        if len(rows) > holds:
            raise torch.OutOfMemoryError
        return [row**2 for row in rows]

    fitting = Fitting(16)
    assert fitting.run(work, range(7)) == [row**2 for row in range(7)]
    assert seen == tried
    assert fitting.run(work, range(holds)) == [row**2 for row in range(holds)]
    with pytest.raises(torch.OutOfMemoryError):
        Fitting(4).run(lambda rows: work([None] * 9), range(3))


SHIFT_AND_SCALE = {"sd15": (0.0, 0.18215), "sd2": (0.0, 0.18215), "sdxl": (0.0, 0.13025), "sd3": (0.0609, 1.5305)}
SHIFT_AND_SCALE["pixart"] = (0.0, 0.13025)


@pytest.mark.parametrize("name", SHIFT_AND_SCALE)
def test_an_image_is_shifted_then_scaled(pipelines, name):
    """(x - shift) * scale of the VAE's own posterior, the standard deviation by the scale alone.

    The pipelines undo it before they decode: x / scale + shift. So a draw from our moments, undone, is the VAE's draw.
    """
    mean, std = encoders(pipelines(name)).encode_media(pixels().unsqueeze(1))
    channels = FACTS[name].latent[0]
    assert mean.shape == std.shape == (channels, 1, 8, 12)
    assert mean.dtype == std.dtype == torch.float32 and not mean.requires_grad
    shift, scale = SHIFT_AND_SCALE[name]
    vae = DiffusionPipeline.from_pretrained(pipelines(name)).vae
    with torch.no_grad():
        posterior = vae.encode(pixels()[None]).latent_dist
    drawn = posterior.sample(torch.Generator().manual_seed(1))[0]
    noise = torch.randn(1, *drawn.shape, generator=torch.Generator().manual_seed(1))[0]
    ours = (mean + std * noise.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(ours / scale + shift, drawn, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean.squeeze(1), (posterior.mode()[0] - shift) * scale, rtol=1e-5, atol=1e-6)
    assert std.min() > 0


@pytest.mark.parametrize("name", SHIFT_AND_SCALE)
def test_a_prompt_is_what_the_pipeline_makes_of_it(pipelines, name):
    """Row by row against the pipeline's own encoding of the prompts, in one batch."""
    ours = [encoders(pipelines(name)).encode_prompt(prompt) for prompt in PROMPTS]
    pipeline = DiffusionPipeline.from_pretrained(pipelines(name))
    with torch.no_grad():
        states = pipeline.encode_prompt(
            PROMPTS,
            **({"prompt_2": PROMPTS, "prompt_3": PROMPTS} if name == "sd3" else {}),
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    for row, encoded in enumerate(ours):
        torch.testing.assert_close(encoded["text"], states[0][row], rtol=1e-5, atol=1e-5)
        if FACTS[name].masked:
            assert encoded["mask"].dtype == torch.bool and torch.equal(encoded["mask"], states[1][row].bool())
        assert encoded["text"].dtype == torch.float32 and not encoded["text"].requires_grad
        if FACTS[name].pooled:
            torch.testing.assert_close(encoded["pooled"], states[2][row], rtol=1e-5, atol=1e-5)
        told = {"pooled"} if FACTS[name].pooled else {"mask"} if FACTS[name].masked else set()
        assert set(encoded) == {"text"} | told
    assert not torch.equal(ours[0]["text"], ours[1]["text"])


def test_sd_text_is_the_last_hidden_state_of_all_positions(pipelines):
    """Without the pipeline's help: padded to the tokenizer's length, no attention mask."""
    pipeline = DiffusionPipeline.from_pretrained(pipelines("sd15"))
    tokens = pipeline.tokenizer(PROMPTS[0], padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = pipeline.text_encoder(tokens.input_ids).last_hidden_state[0]
    text = encoders(pipelines("sd15")).encode_prompt(PROMPTS[0])["text"]
    assert text.shape == (16, 24)
    torch.testing.assert_close(text, states, rtol=1e-5, atol=1e-5)


def test_sdxl_text_is_the_penultimate_state_of_both(pipelines):
    pipeline = DiffusionPipeline.from_pretrained(pipelines("sdxl"))
    parts = ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2))
    states = []
    for tokenizer, encoder in parts:
        tokens = tokenizer(PROMPTS[0], padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = encoder(tokens.input_ids, output_hidden_states=True)
        states.append(output.hidden_states[-2][0])
    encoded = encoders(pipelines("sdxl")).encode_prompt(PROMPTS[0])
    torch.testing.assert_close(encoded["text"], torch.cat(states, dim=-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoded["pooled"], output.text_embeds[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PIPELINES)
def test_sizes_are_multiples_of_the_vae_and_the_patch(pipelines, name):
    """Most tiny VAEs halve; most transformers take patches of two."""
    assert encoders(pipelines(name)).multiple == FACTS[name].multiple


def test_everything_is_frozen_and_the_denoiser_is_not_loaded(pipelines):
    ours = encoders(pipelines("sd15"))
    assert ours.pipeline.unet is None
    modules = [part for part in ours.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 2
    assert not any(m.training or any(p.requires_grad for p in m.parameters()) for m in modules)


def test_the_dtype_of_the_encoders(pipelines):
    """Computed in half; what is stored is float32 all the same."""
    half = encoders(pipelines("sd15"), encoder_dtype="bfloat16")
    assert half.pipeline.vae.dtype == half.pipeline.text_encoder.dtype == torch.bfloat16
    mean, std = half.encode_media(pixels().unsqueeze(1))
    assert mean.dtype == std.dtype == half.encode_prompt("a")["text"].dtype == torch.float32
    full = encoders(pipelines("sd15")).encode_media(pixels().unsqueeze(1))[0]
    assert not torch.equal(mean, full)
    torch.testing.assert_close(mean, full, rtol=0.1, atol=0.05)


@pytest.fixture
def copy(pipelines, tmp_path):
    return shutil.copytree(pipelines("sdxl"), tmp_path / "copy")


def identity(folder, vae=None, dtype="float32") -> str:
    return fingerprint(find_base(str(folder), vae=vae), Full(path=str(folder), encoder_dtype=dtype))


def flip_a_byte(file, at: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x2A  # a newline becomes a space: still JSON
    file.write_bytes(content)


@pytest.mark.parametrize(
    "part",
    [
        "vae/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_the_fingerprint_changes_with_what_decides_an_encoding(pipelines, copy, part):
    """One bit of one file, at the same size."""
    assert identity(copy) == identity(pipelines("sdxl"))
    flip_a_byte(copy / part)
    assert identity(copy) != identity(pipelines("sdxl"))


def test_the_fingerprint_changes_with_nothing_else(pipelines, copy):
    """Not with the denoiser, the scheduler, the folder's name, or the times of its files."""
    flip_a_byte(copy / "unet" / "diffusion_pytorch_model.safetensors")
    (copy / "scheduler" / "scheduler_config.json").write_text("{}")
    for file in copy.rglob("*.safetensors"):
        os.utime(file, (0, 0))
    elsewhere = copy.rename(copy.parent / "elsewhere")
    assert identity(elsewhere) == identity(pipelines("sdxl"))


def test_the_fingerprint_knows_the_dtype_and_another_vae(pipelines, tmp_path):
    folder = pipelines("sdxl")
    vae = shutil.copytree(folder / "vae", tmp_path / "fixed" / "vae")
    flip_a_byte(vae / "diffusion_pytorch_model.safetensors")
    assert len({identity(folder), identity(folder, dtype="float16"), identity(folder, str(vae))}) == 3


def test_another_vae_is_used(pipelines, tmp_path):
    """`model.vae`: a folder; its own scaling counts, and the pipeline's VAE does not."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = AutoencoderKL.from_config(
            AutoencoderKL.load_config(pipelines("sdxl") / "vae") | {"scaling_factor": 0.5}
        )
    other.save_pretrained(tmp_path)
    ours = encoders(pipelines("sdxl"), vae=str(tmp_path))
    with torch.no_grad():
        expected = 0.5 * other.encode(pixels()[None]).latent_dist.mode()[0]
    torch.testing.assert_close(ours.encode_media(pixels().unsqueeze(1))[0].squeeze(1), expected, rtol=1e-5, atol=1e-6)
    assert ours.fingerprint != encoders(pipelines("sdxl")).fingerprint


@pytest.mark.parametrize("at", [0, 500_000, 66 * 2**20 - 1])
def test_a_large_file_is_sampled_from_its_start_to_its_end(copy, at):
    """66 MiB are more than is read: the header at the start counts, and the very last byte."""
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    with weights.open("wb") as file:
        file.truncate(66 * 2**20)
    before = identity(copy)
    with weights.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    assert identity(copy) != before


def test_a_pipeline_around_the_denoiser(pipelines):
    """What sample grids are drawn with: the encoders' own parts and the network in training."""
    ours, network = encoders(pipelines("sd15")), make(pipelines("sd15"), "full")[0].network
    pipeline = ours.with_denoiser(network)
    assert pipeline.unet is network and pipeline.vae is ours.pipeline.vae and pipeline.safety_checker is None
    assert ours.pipeline.unet is None


@pytest.mark.parametrize("name", PIPELINES)
def test_prompts_that_the_text_encoders_cut_are_counted(pipelines, name):
    """The tiny CLIP tokenizers read 16 tokens, one per letter and two marks; SD3's pipeline gives 256 to T5."""
    counted = encoders(pipelines(name)).count_cut([*("a" * n for n in (14, 15, 100, 300)), ""])
    expected = dict(FACTS[name].cut)
    assert counted == expected
    assert encoders(pipelines(name)).count_cut(["a", ""]) == dict.fromkeys(expected, 0)


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl", "sd3"])
def test_what_is_counted_as_cut_is_cut(pipelines, name):
    """Text behind a limit changes nothing in the states of the encoder that has it; before the limit it does."""
    ours = encoders(pipelines(name))
    whole, cut, other = (ours.encode_prompt("a " * 14 + end)["text"] for end in ("", "b", "c"))
    clip = slice(0, 16)
    assert torch.equal(cut[clip], other[clip]) and torch.equal(whole[clip], cut[clip])
    assert not torch.equal(ours.encode_prompt("a " * 13 + "b")["text"][clip], whole[clip])
    if name == "sd3":
        assert not torch.equal(cut, other), "T5 reads on"
