"""User adapters: an exact no-op until something was learned, and for the null user; the same again from their files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny import open_plain
from tiny_steps import FACTS, TOLD, ask, make, move, pair_batch, with_users
from tiny_users import EMBEDDING, user_states

from diffpo.config.blocks import make as build
from diffpo.core.types import Embedding
from diffpo.errors import UserError
from diffpo.models.bases import find_base
from diffpo.models.recomputing import recompute
from diffpo.models.tunings import MODELS
from diffpo.models.user_adapter import user_adapter
from diffpo.models.user_files import INDEX, TENSORS, load_user_adapter

SMALL = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
GUIDED = {"sd15": {"guidance_scale": 3.0}, "sdxl": {"guidance_scale": 3.0}, "flux": {"true_cfg_scale": 3.0}}
"""What a pipeline is told to guide with an empty negative prompt."""
LENGTH = {"wan": {"num_frames": 5, "guidance_scale": 3.0}}
LENGTH["stable-cascade"] = {"height": 128, "width": 128, "prior_guidance_scale": 3.0, "prior_num_inference_steps": 2}


def told(batch, users):
    return replace(batch, cond=batch.cond.map(lambda cond: replace(cond, user=users)))


@pytest.mark.parametrize("name", TOLD)
def test_what_is_exactly_the_base(pipelines, name):
    """A fresh adapter; later the null user, in a row among others, and the reference. In float32, to the bit."""
    base, batch = make(pipelines(name), "full")[0], pair_batch(name, [0, 1, 2])
    policy, reference = make(pipelines(name), "user")
    plain = ask(base, batch)
    assert torch.equal(ask(policy, with_users(batch)), plain)
    move(policy.network, 0.3)
    users = user_states(3)
    users[1] = 0
    answer = ask(policy, told(batch, users))
    moved_by = (answer - plain).abs().flatten(1).amax(1)
    assert torch.equal(answer[1], plain[1]) and (moved_by[[0, 2]] > 1e-2).all()
    assert torch.equal(ask(policy, batch), plain) and torch.equal(ask(reference, told(batch, users)), plain)


def test_the_formula(pipelines):
    """One layer by hand: the text attention's own query among the tokens, added before the output projection."""
    policy, _ = make(pipelines("sd15"), "user", torch.float64, tokens=2)
    move(policy.network, 0.3)
    adapter, users = user_adapter(policy.network), user_states(2).double()
    attention = policy.network.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
    generator = torch.Generator().manual_seed(0)
    width = attention.to_q.in_features
    x, text = (torch.randn(2, n, d, generator=generator).double() for n, d in ((9, width), (5, 24)))
    tokens = torch.nn.functional.layer_norm(
        (users @ adapter.proj.weight.T).reshape(2, 4, 24), (24,), adapter.norm.weight
    )

    def heads(z):
        return z.reshape(2, -1, attention.heads, width // attention.heads).transpose(1, 2)

    query = heads(x @ attention.to_q.weight.T)
    weights = (query @ heads(tokens @ attention.user.to_k.weight.T).mT / query.shape[-1] ** 0.5).softmax(-1)
    part = (weights @ heads(tokens @ attention.user.to_v.weight.T)).transpose(1, 2).reshape(2, 9, width)
    with torch.no_grad():
        plain = attention(x, text)
        with adapter.again(replace(adapter.told, tokens=tokens, strength=0.7)):
            got = attention(x, text)
    torch.testing.assert_close(got - plain, 0.7 * part @ attention.to_out[0].weight.T, rtol=1e-10, atol=1e-12)


def test_beside_another_attention_and_in_compiled_blocks(pipelines):
    """What computes the text's attention has no say in the user's, and blocks stay whole graphs."""
    batch, answers = with_users(pair_batch("flux", [0, 1])), []
    for attention in ("native", "_native_math"):
        policy, _ = make(pipelines("flux"), "user", torch.float64, attention=attention)
        move(policy.network, 0.3)
        answers += [ask(policy, told(batch, user_states(2).double())), ask(policy, pair_batch("flux", [0, 1]))]
    torch.testing.assert_close(answers[:2], answers[2:], rtol=1e-9, atol=1e-9)
    for module in policy.network.modules():
        if type(module).__name__ in policy.blocks[:1]:
            module.compile(backend="eager", fullgraph=True)
    compiled = ask(policy, told(batch, user_states(2).double())), ask(policy, pair_batch("flux", [0, 1]))
    assert all(torch.equal(*pair) for pair in zip(compiled, answers[2:], strict=True))


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_checkpointing_remembers_the_users(pipelines, name):
    """Activations are computed a second time after the network was told of others."""
    policy, _ = make(pipelines(name), "user")
    move(policy.network, 0.3)
    policy.network.train()
    batch = pair_batch(name, [0, 1])
    t = torch.full((2,), 0.4) if policy.process.prediction == "flow" else torch.full((2,), 400)
    gradients = []
    for checkpoint in (False, True):
        if checkpoint:
            recompute(policy.network, policy.blocks, 1.0)
        mine, others = (told(batch, users).cond.chosen for users in (user_states(2), user_states(4)[2:]))
        answer = policy.predict(batch.latent.chosen, t, mine)
        policy.predict(batch.latent.chosen, t, others)
        answer.square().sum().backward()
        trained = {key: p for key, p in policy.network.named_parameters() if p.requires_grad}
        gradients.append({key: p.grad.clone() for key, p in trained.items()})
        policy.network.zero_grad()
    assert all(torch.equal(x, gradients[1][key]) for key, x in gradients[0].items())


def test_a_lora_beside_it(pipelines, tmp_path):
    """Both learn, the reference is neither, and the export has a file for each."""
    policy, reference = make(pipelines("sd15"), "user", rank=2)
    batch = with_users(pair_batch("sd15", [0, 1]))
    plain = ask(make(pipelines("sd15"), "full")[0], pair_batch("sd15", [0, 1]))
    move(policy.network, 0.3)
    assert torch.equal(ask(reference, batch), plain)
    nobody = ask(policy, pair_batch("sd15", [0, 1]))
    assert not torch.equal(nobody, plain) and not torch.equal(ask(policy, batch), nobody)
    save(pipelines("sd15"), policy, tmp_path, rank=2)
    assert {file.name for file in tmp_path.iterdir()} == {TENSORS, INDEX, "pytorch_lora_weights.safetensors"}
    pipeline = DiffusionPipeline.from_pretrained(pipelines("sd15"))
    pipeline.load_lora_weights(tmp_path)
    load_user_adapter(pipeline, tmp_path)
    own = dict(policy.network.named_parameters())
    theirs = {key.replace("default_0", "default"): p for key, p in pipeline.unet.named_parameters()}
    assert own.keys() == theirs.keys() and all(torch.equal(p, theirs[key]) for key, p in own.items())


def save(folder, policy, out, **settings):
    """Export an adapter as training does."""
    base = find_base(str(folder))
    weights = {key: p.detach() for key, p in policy.network.named_parameters() if p.requires_grad}
    MODELS["user"](path=str(folder), **settings).save(out, base, policy.network, weights)


def sample(pipeline, name, **more):
    pipeline.set_progress_bar_config(disable=True)
    call = SMALL | GUIDED.get(name, {}) | LENGTH.get(name, {}) | more
    made = pipeline("a b", negative_prompt="", generator=torch.Generator().manual_seed(0), **call)
    return made.images if "images" in made else made.frames


@pytest.mark.parametrize(("name", "tokens"), [("sd15", 4), ("sdxl", 1), ("flux", 2), ("wan", 4), ("stable-cascade", 2)])
def test_from_its_file_into_a_pipeline(pipelines, tmp_path, name, tokens):
    """With diffpo, and where diffusers reads it, with diffusers alone: guided images of the same user are the same."""
    policy, _ = make(pipelines(name), "user", tokens=tokens)
    move(policy.network, 0.3)
    save(pipelines(name), policy, tmp_path, tokens=tokens)
    said = {"embedder": EMBEDDING.embedder, "width": EMBEDDING.width, "tokens": tokens, "family": FACTS[name].family}
    assert said.items() <= json.loads((tmp_path / INDEX).read_text()).items()
    pipeline, states = open_plain(pipelines(name)), user_states(1)
    base = sample(pipeline, name)
    adapter = load_user_adapter(pipeline, tmp_path)
    loaded = dict(pipeline.components[find_base(str(pipelines(name))).component].named_parameters())
    assert all(torch.equal(p, loaded[key]) for key, p in policy.network.named_parameters())
    for nothing in ((None,), (states, 0.0), (torch.zeros_like(states),)):
        with adapter.speaking(*nothing):
            assert np.array_equal(sample(pipeline, name), base)
    with adapter.speaking(states, 0.8):
        mine = sample(pipeline, name)
    with adapter.speaking(states, 0.8, guidance="both"):
        both = sample(pipeline, name)
    assert np.abs(mine - base).max() > 0.05 and np.abs(mine - both).max() > 0.01
    if name in GUIDED:
        plain = DiffusionPipeline.from_pretrained(pipelines(name))
        nobody = torch.zeros_like(states)
        if name == "flux":
            plain.load_ip_adapter(tmp_path, weight_name=TENSORS, image_encoder_pretrained_model_name_or_path=None)
            user = {"ip_adapter_image_embeds": [states], "negative_ip_adapter_image_embeds": [nobody]}
        else:
            plain.load_ip_adapter(tmp_path, subfolder="", weight_name=TENSORS, image_encoder_folder=None)
            user = {"ip_adapter_image_embeds": [torch.cat([nobody, states])]}
        plain.set_ip_adapter_scale(0.8)
        np.testing.assert_allclose(sample(plain, name, **user), mine, atol=2e-6 if tokens < 4 else 0)


def test_what_does_not_fit_is_refused(pipelines, tmp_path):
    policy, _ = make(pipelines("sd15"), "user")
    save(pipelines("sd15"), policy, tmp_path)
    with pytest.raises(UserError, match=r"512 numbers of clip, but the adapter was trained on 6 numbers of tiny"):
        policy.adapter.check(Embedding("clip", 512))
    with pytest.raises(UserError, match="is for unet; this model is a StableDiffusionXLPipeline"):
        load_user_adapter(DiffusionPipeline.from_pretrained(pipelines("sdxl")), tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(pipelines("sd15"))
    load_user_adapter(pipeline, tmp_path)
    with pytest.raises(UserError, match="has a user adapter already"):
        load_user_adapter(pipeline, tmp_path)
    with pytest.raises(UserError, match="holds no user adapter"):
        load_user_adapter(pipeline, tmp_path / "nothing")
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_user_adapter(pipeline, tmp_path)
    with pytest.raises(UserError, match="tokens is 3; it must be 1, 2 or 4"):
        build(MODELS["user"], {"path": "x", "tokens": 3}, "model")
    with pytest.raises(UserError, match="model=user trains no adapter for a SanaPipeline"):
        MODELS["user"](path=str(pipelines("sana"))).find()


def test_the_file_is_the_same_every_time(pipelines, tmp_path):
    policy, _ = make(pipelines("sd15"), "user", tokens=1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(pipelines("sd15"), policy, tmp_path / name, tokens=1)
    assert (tmp_path / "a" / TENSORS).read_bytes() == (tmp_path / "b" / TENSORS).read_bytes()
    assert len(load_file(tmp_path / "a" / TENSORS)["image_proj.proj.weight"]) == 4 * 24
