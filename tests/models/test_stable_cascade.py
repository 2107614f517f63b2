"""Stable Cascade's stage C: its schedule, its pictures' encoder, and what plain diffusers makes of what was trained."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from runs import ROOT
from safetensors.torch import load_file
from tiny import effnet, open_plain
from tiny_steps import ask, draws, make, move, pair_batch
from tiny_users import user_states

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import (  # noqa: E402
    DDPMWuerstchenScheduler,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
)

from diffpo.config.run import build  # noqa: E402
from diffpo.core.process import Time  # noqa: E402
from diffpo.core.step import preference_step  # noqa: E402
from diffpo.core.types import Rng  # noqa: E402
from diffpo.errors import ConfigError, UserError  # noqa: E402
from diffpo.generation.video_pairs import VideoPairOptions, make_video_pairs  # noqa: E402
from diffpo.methods import METHODS  # noqa: E402
from diffpo.models import FAMILIES  # noqa: E402
from diffpo.models.bases import find_base  # noqa: E402
from diffpo.models.effnet import FILE  # noqa: E402
from diffpo.models.encoders import Encoders  # noqa: E402
from diffpo.models.lora import LoRA  # noqa: E402
from diffpo.models.outline import outline  # noqa: E402
from diffpo.models.peft_folder import CONFIG_FILE  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402
from diffpo.models.user_files import TENSORS, load_user_adapter, save_user_adapter  # noqa: E402
from diffpo.training.checkpoint import trained_weights  # noqa: E402
from diffpo.training.export import model_card  # noqa: E402

STAGE_C = FAMILIES["stable-cascade"]
SMALL = {"height": 128, "width": 128, "prior_num_inference_steps": 2, "num_inference_steps": 2, "output_type": "np"}
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def lines_of_page(first: str) -> str:
    """Code of docs/models.md, from its first line to the next paragraph."""
    block = re.search(rf"^    {re.escape(first)}.*?(?=^\S)", PAGE, re.M | re.S)
    assert block, f"the page has no code that begins with {first}"
    return re.sub(r"^    ", "", block[0], flags=re.M)


def test_its_schedule_is_that_of_its_scheduler():
    """Alpha by the published formula, cos^2 between clamps, and by the scheduler's own noise; times are uniform."""
    process = STAGE_C.make_process({}, Time(low=0.25))
    t = torch.tensor([0.0, 0.001, 0.3, 0.9, 1.0], dtype=torch.float64)
    alpha, sigma = process.alpha_sigma(t)
    s = 0.008
    abar = [math.cos((x + s) / (1 + s) * math.pi / 2) ** 2 / math.cos(s / (1 + s) * math.pi / 2) ** 2 for x in t]
    expected = torch.tensor(abar, dtype=torch.float64).clamp(1e-4, 0.9999)
    torch.testing.assert_close(alpha.square(), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(t), rtol=0, atol=1e-15)
    x0, eps = torch.randn(2, 5, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = process.mix(x0, eps, t)
    torch.testing.assert_close(z, DDPMWuerstchenScheduler().add_noise(x0, eps, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.split(eps, z, (alpha, sigma))[0], x0, rtol=0, atol=1e-10)
    times = process.sample_time(Rng(0, 0, torch.arange(2000)), (16, 1, 2, 3))
    assert 0.25 <= times.min() < 0.26 and 0.99 < times.max() < 1 and torch.equal(process.relative(times), times)
    assert times.mean().item() == pytest.approx(0.625, abs=0.02)


def test_an_inversion_walks_an_even_grid_from_the_clean_latents():
    process = STAGE_C.make_process({}, Time())
    path = process.path(torch.tensor([0.6, 0.1]), 4, "exact", (16, 1, 2, 3))
    torch.testing.assert_close(path.time.T.float(), torch.tensor([[0.0, 0.25, 0.5, 0.6], [0.0, 0.1, 0.1, 0.1]]))
    assert path.steps.tolist() == [3, 1] and path.alpha[0].tolist() == [1, 1] and path.sigma[0].tolist() == [0, 0]
    z = torch.randn(2, 16, 1, 2, 3, dtype=torch.float64)
    here, there = ((path.alpha[i], path.sigma[i]) for i in (0, 1))
    slope = process.slope_between(z, process.move(z, 2 * z, here, there), here, there)
    torch.testing.assert_close(slope, 2 * z)
    with pytest.raises(ConfigError, match="use landing=exact here"):
        process.path(torch.tensor([0.6]), 4, "released", (16, 1, 2, 3))


def test_another_scheduler_is_refused():
    with pytest.raises(UserError, match=r"the prior_scheduler is a DDIMScheduler; .* DDPMWuerstchenScheduler"):
        STAGE_C.make_process({"_class_name": "DDIMScheduler"}, Time())


def test_pictures_are_encoded_as_the_authors_do(pipelines):
    """torchvision's features of a normalised picture, projected, minus the running mean, over the deviation."""
    from torchvision.models import efficientnet_v2_s
    from torchvision.transforms import Normalize

    folder, generator = pipelines("stable-cascade"), torch.Generator().manual_seed(3)
    picture = torch.rand(3, 1, 64, 96, generator=generator)
    mean, std = Encoders(Full(path=str(folder)), "cpu").encode_media(2 * picture - 1)
    weights = {key: x.float() for key, x in effnet().items()}
    with torch.device("meta"):
        features = efficientnet_v2_s(weights=None).features.eval()
    features.load_state_dict({key[9:]: x for key, x in weights.items() if key.startswith("backbone.")}, assign=True)
    with torch.no_grad():
        found = features(Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(picture.transpose(0, 1)))
    projected = torch.einsum("oc,chw->ohw", weights["mapper.0.weight"][:, :, 0, 0], found[0])
    centre, spread = weights["mapper.1.running_mean"], (weights["mapper.1.running_var"] + 1e-5).sqrt()
    expected = (projected - centre[:, None, None]) / spread[:, None, None]
    assert mean.shape == (16, 1, 2, 3) and not std.any()
    torch.testing.assert_close(mean[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert outline(Full(path=str(folder)), (64, 96), 1).latent == (16, 1, 2, 3)


def test_where_the_encoder_may_lie(pipelines, tmp_path):
    """In the folder, in another one, or as a file; else it is said what to give, before anything is loaded."""
    folder = shutil.copytree(pipelines("stable-cascade"), tmp_path / "model")
    (tmp_path / "other").mkdir()
    file = (folder / FILE).rename(tmp_path / "other" / FILE)
    with pytest.raises(UserError, match=rf"no .*{FILE}: .* Give model.vae=stabilityai/stable-cascade"):
        Full(path=str(folder)).find()
    for place in (file, file.parent):
        base = find_base(str(folder), vae=str(place))
        assert base.part("vae") == file and "vae" in base.encoders
    wrong = folder / "prior_prior" / "diffusion_pytorch_model.safetensors"
    encoders = Encoders(Full(path=str(folder), vae=str(wrong)), "cpu")
    with pytest.raises(
        UserError, match=rf"is not the encoder of Stable Cascade's stage C .*: give the authors' {FILE}"
    ):
        encoders.encode_media(torch.zeros(3, 1, 32, 32))


def test_the_published_dropout_is_off(pipelines):
    """The tiny network has it too: in training mode policy and reference must be one function all the same."""
    for tuning in ("full", "lora", "user"):
        policy, reference = make(pipelines("stable-cascade"), tuning)
        assert tuple(policy.config["dropout"]) == (0.1, 0.1)
        policy.network.train()
        batch = pair_batch("stable-cascade", [0, 1])
        loss = preference_step(METHODS["dpo"](beta=5000.0), policy, reference, batch, draws(batch)).loss
        assert torch.equal(loss, torch.full((2,), math.log(2)))


@pytest.mark.parametrize("half", ["StableCascadePriorPipeline", "StableCascadeDecoderPipeline"])
def test_half_of_the_model_is_refused(tmp_path, half):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": half}))
    with pytest.raises(UserError, match=rf"is a {half}, .* one half of the model: docs/models.md says how"):
        find_base(str(tmp_path))


def test_halves_become_one_folder_as_the_page_says(pipelines, tmp_path):
    """Saved as on the Hub, then by the page's own lines: the same weights, and a base."""
    whole = open_plain(pipelines("stable-cascade"))
    prior = {name.removeprefix("prior_"): part for name, part in whole.components.items() if name.startswith("prior_")}
    StableCascadePriorPipeline(**prior).save_pretrained(tmp_path / "hub-prior")
    stages = {name: part for name, part in whole.components.items() if not name.startswith("prior_")}
    StableCascadeDecoderPipeline(**stages).save_pretrained(tmp_path / "hub")
    lines = lines_of_page("from diffusers import StableCascadeCombinedPipeline")
    lines = lines.replace("stabilityai/stable-cascade", str(tmp_path / "hub"))
    exec(lines.replace("models/stable-cascade", str(tmp_path / "one")), {})
    shutil.copy(pipelines("stable-cascade") / FILE, tmp_path / "one")
    base = find_base(str(tmp_path / "one"))
    assert base.family is STAGE_C and base.network_class is StableCascadeUNet
    for part in ("prior_prior", "decoder", "vqgan"):
        ours, theirs = (
            load_file(folder / part / "diffusion_pytorch_model.safetensors")
            for folder in (base.folder, pipelines("stable-cascade"))
        )
        assert all(torch.equal(x, theirs[key]) for key, x in ours.items()) and ours


def test_the_card_of_an_export_opens_it(pipelines, tmp_path):
    """Its lines, for an adapter of PEFT: the answers of the network that was trained."""
    folder = pipelines("stable-cascade")
    policy, _ = make(folder, "lora")
    move(policy.network, 0.3)
    tuning = LoRA(path=str(folder), rank=2)
    tuning.save(tmp_path, tuning.find(), policy.network, trained_weights(policy.network))
    tree = {
        "method": {"name": "dpo"},
        "data": {"name": "pairs", "path": "x"},
        "train": {"steps": 1, "output": str(tmp_path)},
    }
    config = build(tree | {"model": {"name": "lora", "path": str(folder)}})
    card = str(model_card(config, tmp_path, "prior_prior", {CONFIG_FILE}))
    lines = re.search(r"```python\n(.*?)```", card, re.S)[1].replace("PATH/OF/THIS/FOLDER", str(tmp_path))
    made = {}
    exec(lines.replace(f".../{folder.name}", str(folder)), made)  # a card tells no folder of this machine
    opened = STAGE_C(made["pipe"].prior_pipe.prior, policy.process)
    batch = pair_batch("stable-cascade", [0])
    torch.testing.assert_close(ask(opened, batch), ask(policy, batch), rtol=1e-5, atol=1e-5)
    assert made["pipe"].decoder_pipe.vqgan is not None


def test_a_user_adapter_in_plain_diffusers(pipelines, tmp_path):
    """By the page's lines, without diffpo: the guided pictures that diffpo makes of a user, and not the base's."""
    folder, states = pipelines("stable-cascade"), user_states(1)
    policy, _ = make(folder, "user")
    move(policy.network, 0.3)
    weights = {key: p.detach() for key, p in policy.network.named_parameters() if p.requires_grad}
    save_user_adapter(tmp_path, find_base(str(folder)), policy.network, weights)

    def draw(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe("a b", generator=generator, prior_guidance_scale=3.0, **SMALL).images

    ours, theirs = open_plain(folder), open_plain(folder)
    base = draw(ours)
    with load_user_adapter(ours, tmp_path).speaking(states, 0.8):
        mine = draw(ours)
    lines = lines_of_page("from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0")
    lines = lines.replace("runs/NAME/final/user_adapter.safetensors", str(tmp_path / TENSORS))
    lines, _, call = lines.rpartition("image =")
    assert call.strip() == "pipe(prompt).images[0]"
    exec(lines, {"torch": torch, "pipe": theirs, "states": states})
    np.testing.assert_allclose(draw(theirs), mine, atol=2e-6)
    assert np.abs(mine - base).max() > 0.05


def test_it_makes_no_guided_pairs(pipelines, tmp_path):
    options = VideoPairOptions(model=str(pipelines("stable-cascade")), steps=2, device="cpu")
    with pytest.raises(UserError, match="is a StableCascadeCombinedPipeline, which has no VAE to encode clips with"):
        make_video_pairs(options, tmp_path, tmp_path / "out")
