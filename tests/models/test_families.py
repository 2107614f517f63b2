"""Each family asks its network exactly as its diffusers pipeline does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from shown import shown
from tiny import CLIPS, DECODED, IMAGES, PIPELINES, as_called, open_plain
from tiny_steps import FACTS, SIZE, draws, make, moved, near, pair_batch, times

from diffpo.core.process import DiscreteProcess, FlowProcess, Time
from diffpo.core.step import preference_step
from diffpo.core.types import Condition, Pair
from diffpo.data.loader import as_condition
from diffpo.errors import UserError
from diffpo.methods import METHODS
from diffpo.models import FAMILIES
from diffpo.models.bases import find_base
from diffpo.models.discrete import discrete_process
from diffpo.models.encoders import Encoders
from diffpo.models.flow import Flow
from diffpo.models.packed import Packed
from diffpo.models.tuning import Full
from diffpo.models.unet import UNet


def overhear(folder, prompt: str, **more) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(z, time, answer) of every forward that plain diffusers makes of one prompt, without guidance."""
    pipeline = open_plain(folder)
    pipeline.set_progress_bar_config(disable=True)
    network = pipeline.components[find_base(str(folder)).component]
    heard = []

    def listen(_, args, kwargs, output):
        z = next((kwargs[name] for name in ("hidden_states", "sample") if name in kwargs), None)
        time = next((kwargs[name] for name in ("timestep", "timestep_ratio") if name in kwargs), None)
        z, time = args[0] if z is None else z, args[1] if time is None else time
        heard.append((as_tensor(z), as_tensor(time), as_tensor(output[0])))

    network.register_forward_hook(listen, with_kwargs=True)
    generator = torch.Generator().manual_seed(0)
    how = {"num_inference_steps": 3, "guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "latent"}
    pipeline(prompt=prompt, generator=generator, **as_called(pipeline, how | more))
    return heard


def as_tensor(x):
    """Some networks take and answer a list, a row each."""
    return (torch.stack(x) if isinstance(x, list) else x).detach()


def laid_out(denoiser, name, x):
    """What a network is given or answers, as `[b c f h w]`."""
    if FACTS[name].backwards:
        return x
    if isinstance(denoiser, Packed):
        return denoiser.unpack(x, (1, *FACTS[name].latent))
    if FACTS[name].frames_first:
        return x.transpose(1, 2)
    return x[:, : FACTS[name].latent[0]] if name in CLIPS else x.unsqueeze(2)  # the others are of a first picture


def told_as_time(denoiser, name, told):
    """The process's time of what a pipeline tells its network."""
    if FACTS[name].backwards:
        return 1 - told.reshape(1)
    return told.flatten()[:1] / (FACTS[name].unit or (denoiser.unit if isinstance(denoiser, Flow) else 1))


@pytest.mark.parametrize("name", PIPELINES)
def test_predict_asks_as_the_pipeline_does(pipelines, name):
    """Text, pooled state, sizes and time, with our own encoding of the prompt: the same answers at every step."""
    denoiser, _ = make(pipelines(name), "full")
    prompt = 'a circle that says "red"'
    heard = overhear(pipelines(name), prompt, **dict(FACTS[name].call), **CLIPS.get(name, {}))
    assert len(heard) == 3
    cond = as_condition(Encoders(Full(path=str(pipelines(name))), "cpu").encode_prompt(prompt))
    size = torch.tensor([[value for pair in SIZE.values() for value in pair]])
    cond = replace(cond, extra=cond.extra | {"size": size})
    for z, time, answer in heard:
        z, answer = laid_out(denoiser, name, z), laid_out(denoiser, name, answer)
        with torch.no_grad():
            ours = denoiser.predict(z, told_as_time(denoiser, name, time), cond)
        kept = answer[:, : z.shape[1]]  # PixArt's other half is a variance
        torch.testing.assert_close(-ours if FACTS[name].backwards else ours, kept, **near(name, 1e-5, 1e-6))


def answers(denoiser, batch, t, cond=None):
    with torch.no_grad():
        return denoiser.predict(batch.latent.chosen, t, batch.cond.chosen if cond is None else cond)


def test_every_one_of_the_six_sizes_counts(pipelines):
    denoiser, _ = make(pipelines("sdxl"), "full")
    batch = pair_batch("sdxl", [0])
    cond, t = batch.cond.chosen, torch.tensor([300])
    before = answers(denoiser, batch, t)
    for i in range(6):
        size = cond.extra["size"].clone()
        size[0, i] += 100
        assert not torch.equal(
            answers(denoiser, batch, t, Condition(cond.text, cond.pooled, extra={"size": size})), before
        )


def test_large_sizes_survive_half_precision(pipelines):
    """bfloat16 holds 8 bits: 2049 and 2050 would be one number. The embedding's first frequency turns by 1 radian."""
    denoiser, _ = make(pipelines("sdxl"), "full", torch.bfloat16)
    batch = pair_batch("sdxl", [0], torch.bfloat16)
    cond = batch.cond.chosen
    one, two = (
        answers(
            denoiser, batch, torch.tensor([3]), Condition(cond.text, cond.pooled, extra={"size": torch.full((1, 6), s)})
        )
        for s in (2049, 2050)
    )
    assert not torch.equal(one, two)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_blocks_that_are_compiled_are_there(pipelines, name):
    """Every class that the family names is one of its network's."""
    denoiser, _ = make(pipelines(name), "full")
    blocks = [m for m in denoiser.network.modules() if type(m).__name__ in denoiser.blocks]
    assert {type(block).__name__ for block in blocks} == set(denoiser.blocks)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_row_has_its_own_time(pipelines, name):
    """Eight rows at eight times, in float64, are eight batches of one; and the time matters."""
    denoiser, _ = moved(pipelines(name))
    rows = list(range(8))
    batch = pair_batch(name, rows, torch.float64)
    t = times(denoiser, torch.linspace(0.02, 0.98, 8).tolist())
    together = answers(denoiser, batch, t)
    for row in rows:
        alone = answers(denoiser, pair_batch(name, [row], torch.float64), t[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], **near(name, 1e-12, 1e-12))
    assert not torch.allclose(answers(denoiser, batch, t.flip(0)), together, rtol=1e-3)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_answer_has_the_shape_of_the_question(pipelines, name):
    denoiser, _ = make(pipelines(name), "full")
    batch = pair_batch(name, [0, 1])
    assert answers(denoiser, batch, times(denoiser, [0.5, 0.5])).shape == batch.latent.chosen.shape


@pytest.mark.parametrize("name", IMAGES)
def test_video_is_refused(pipelines, name):
    """Image networks: a second frame is our own mistake, and must not be folded into the batch in silence."""
    denoiser, _ = make(pipelines(name), "full")
    batch = pair_batch(name, [0])
    with pytest.raises(AssertionError, match="2 frames"):
        denoiser.predict(batch.latent.chosen.repeat(1, 1, 2, 1, 1), torch.tensor([0.5]), batch.cond.chosen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_are_cast_to_the_weights(pipelines, dtype):
    """Float32 latents and text from the cache meet weights of whatever dtype."""
    denoiser, _ = make(pipelines("sd3"), "full", dtype)
    assert denoiser.dtype == dtype
    batch = pair_batch("sd3", [0])
    assert answers(denoiser, batch, torch.tensor([0.5])).dtype == dtype


def config(folder) -> dict:
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


@pytest.mark.parametrize(("name", "prediction"), [("sd15", "eps"), ("sd2", "v"), ("sdxl", "eps")])
def test_a_discrete_process_is_the_scheduler(pipelines, name, prediction):
    """The scheduler's own float32 table, whichever class the pipeline samples with."""
    from diffusers import DiffusionPipeline

    scheduler = DiffusionPipeline.from_pretrained(pipelines(name)).scheduler
    process = make(pipelines(name), "full")[0].process
    assert isinstance(process, DiscreteProcess) and process.prediction == prediction
    assert process.alphas_cumprod.dtype == torch.float32
    assert torch.equal(process.alphas_cumprod, scheduler.alphas_cumprod)


def test_sd3_has_its_schedulers_shift(pipelines):
    process = make(pipelines("sd3"), "full")[0].process
    assert isinstance(process, FlowProcess) and process.prediction == "flow"
    assert process.shift == config(pipelines("sd3"))["shift"] == 3.0


def test_the_network_is_told_1000_sigma(pipelines):
    denoiser, _ = make(pipelines("sd3"), "full")
    batch, told = pair_batch("sd3", [0, 1]), []
    denoiser.network.register_forward_pre_hook(lambda _, args: told.append(args[3]))
    answers(denoiser, batch, torch.tensor([0.25, 0.999], dtype=torch.float64))
    torch.testing.assert_close(told[0], torch.tensor([250.0, 999.0]))


def test_times_keep_float32_beside_half_weights(pipelines):
    """bfloat16 would make 999.0 a 1000."""
    denoiser, _ = make(pipelines("sd3"), "full", torch.bfloat16)
    told = []
    denoiser.network.register_forward_pre_hook(lambda _, args: told.append(args[3]))
    answers(denoiser, pair_batch("sd3", [0]), torch.tensor([0.999], dtype=torch.float64))
    assert told[0].item() == pytest.approx(999.0, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in PIPELINES if not FAMILIES[FACTS[name].family].experts])
def test_times_of_the_config_reach_the_process(pipelines, name):
    time = Time(density="uniform", low=0.1, high=0.2)
    assert make(pipelines(name), "full", time=time)[0].process.time == time


def test_a_parametrisation_that_is_not_trained_is_refused(pipelines):
    with pytest.raises(UserError, match="prediction_type is 'sample'; diffpo trains epsilon and v_prediction"):
        discrete_process(config(pipelines("sd15")) | {"prediction_type": "sample"}, Time())


def test_names_are_told_apart():
    """One pipeline class, one family, but for Wan's; a network is looked up by the component's name."""
    classes = [name for family in FAMILIES.values() for name in family.pipelines if name != "WanPipeline"]
    assert len(classes) == len(set(classes))
    components = {name for family in FAMILIES.values() for name in family.components}
    assert components == {"unet", "transformer", "prior_prior"}


@pytest.mark.parametrize("method", ["dcpo", "dpo"])
def test_two_captions_of_different_length(pipelines, method):
    """Padding cut off each text, so that the sides' lengths differ: the same loss as at PixArt's fixed length."""
    models, whole = moved(pipelines("pixart")), pair_batch("pixart", [0, 1, 2], torch.float64)

    def cut(cond: Condition) -> Condition:
        longest = int(cond.mask.sum(dim=1).max())
        return replace(cond, text=cond.text[:, :longest], mask=cond.mask[:, :longest])

    rejected = replace(whole.cond.rejected, mask=torch.arange(5)[None] < torch.tensor([[1], [3], [2]]))
    whole = replace(whole, cond=Pair(whole.cond.chosen, rejected))
    short = replace(whole, cond=whole.cond.map(cut))
    assert [len(cond.text[0]) for cond in short.cond] == [4, 3]
    expected, loss = (preference_step(METHODS[method](beta=50.0), *models, x, draws(x)).loss for x in (whole, short))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    other = replace(whole.cond.rejected, text=whole.cond.rejected.text.where(rejected.mask[..., None], 7.0))
    unheard = replace(whole, cond=Pair(whole.cond.chosen, other))
    hidden = preference_step(METHODS[method](beta=50.0), *models, unheard, draws(unheard)).loss
    torch.testing.assert_close(hidden, expected, rtol=1e-12, atol=0)


def test_pixart_answers_half_of_its_channels(pipelines):
    """The other half is a variance that was learned beside epsilon."""
    denoiser, _ = make(pipelines("pixart"), "full")
    batch, whole = pair_batch("pixart", [0, 1]), []
    denoiser.network.register_forward_hook(lambda _, args, output: whole.append(output[0]))
    answer = answers(denoiser, batch, torch.tensor([5, 900]))
    assert whole[0].shape[1] == 8 and torch.equal(answer.squeeze(2), whole[0][:, :4])


@pytest.mark.parametrize("name", DECODED)
def test_a_picture_becomes_the_latents_that_its_pipeline_decodes(pipelines, name):
    """Shown by the pipeline, latents of the encoder are what the VAE makes of its own posterior's mode."""
    from diffusers import DiffusionPipeline

    encoders = Encoders(Full(path=str(pipelines(name))), "cpu")
    pipeline = DiffusionPipeline.from_pretrained(pipelines(name))
    frames = 2 * torch.rand(3, 1, 32, 64, generator=torch.Generator().manual_seed(0)) - 1
    mean, _ = encoders.encode_media(frames)
    ours = shown(pipeline, mean[None], 1, (32, 64))
    with torch.no_grad():
        given = frames[None] if "Qwen" in type(pipeline.vae).__name__ else frames.transpose(0, 1)
        encoded = pipeline.vae.encode(given)
        theirs = pipeline.vae.decode(encoded.latent_dist.mode() if "latent_dist" in encoded else encoded.latent).sample
    torch.testing.assert_close(ours.reshape(theirs.shape), (theirs / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_a_clip_is_refused_by_image_models(pipelines, name):
    with pytest.raises(UserError, match=r"takes images; it was given a clip of 2 frames"):
        Encoders(Full(path=str(pipelines(name))), "cpu").encode_media(torch.zeros(3, 2, 16, 16))


class Clips(UNet):
    """Only the facts that the frame rule reads."""

    most_frames = None

    @staticmethod
    def factors(vae):
        return vae["spatial"], vae["temporal"]


def test_the_frame_rule():
    """k r + 1 frames: the nearest lengths are named."""
    vae = {"spatial": 8, "temporal": 4}
    for count in (1, 5, 9, 81):
        Clips.check_frames(count, vae)
    for count, others in ((2, "1 and 5"), (8, "5 and 9"), (82, "81 and 85")):
        with pytest.raises(UserError, match=rf"k \* 4 \+ 1 frames; it was given {count} frames.* {others}"):
            Clips.check_frames(count, vae)
