"""Exports: plain diffusers loads them and gets the tuned network; the card says how they were made."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from runs import World, difference, weights
from safetensors import safe_open

from diffpo.disk.published import published
from diffpo.errors import UserError
from diffpo.models.base import LORA_FILE
from diffpo.models.bases import find_base
from diffpo.models.lora import LoRA
from diffpo.training.export import export, is_hub_id
from diffpo.training.processes import make_accelerator

COMPONENTS = {"sd15": "unet", "sdxl": "unet", "sd3": "transformer"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("export"), *COMPONENTS)


def answer(network, family):
    """What a network says about fixed inputs."""
    draws = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=draws)

    with torch.no_grad():
        if family == "sd3":
            inputs = {"encoder_hidden_states": noise(2, 5, 48), "pooled_projections": noise(2, 48)}
            return network(noise(2, 8, 8, 8), timestep=torch.tensor([3.0, 700.0]), **inputs).sample
        width = network.config.cross_attention_dim
        inputs = {"encoder_hidden_states": noise(2, 5, width)}
        if family == "sdxl":
            inputs["added_cond_kwargs"] = {"text_embeds": noise(2, 24), "time_ids": torch.full((2, 6), 16.0)}
        return network(noise(2, 4, 8, 8), torch.tensor([3, 700]), **inputs).sample


@pytest.fixture(scope="module")
def untrained(world):
    """A learner whose trained weights are moved by hand, and what exports it."""
    from diffpo.config.run import build
    from diffpo.training.learner import prepare_learner
    from diffpo.training.run import claim

    def made(family, output, changes):
        config = build(world.tree(output, changes, family))
        accelerator = make_accelerator(config)
        learner = prepare_learner(config, accelerator)
        draws = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in learner.policy.network.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.1)
        claim(world.folder / output, config.to_dict(), fresh=False)
        return learner, lambda: export(config, accelerator, learner.policy, world.folder / output)

    return made


@pytest.fixture(scope="module")
def tuned(untrained):
    """An export, and the network that it should give."""

    def made(family, output, changes):
        learner, exported = untrained(family, output, changes)
        return exported(), learner.policy.network.eval()

    return made


@pytest.mark.parametrize("family", COMPONENTS)
def test_a_lora_loads_in_diffusers(world, tuned, family):
    """With alpha unlike the rank, which a file without its metadata would not tell."""
    final, network = tuned(family, f"{family}-lora", {"model.rank": 4, "model.alpha": 6.0})
    pipe = diffusers.DiffusionPipeline.from_pretrained(world.folder / family)
    plain = getattr(pipe, COMPONENTS[family])
    before = answer(plain, family)
    pipe.load_lora_weights(final)
    torch.testing.assert_close(answer(plain, family), answer(network, family), rtol=1e-5, atol=1e-5)
    assert (answer(plain, family) - before).abs().max() > 1e-2
    (config,) = plain.peft_config.values()
    assert (config.r, config.lora_alpha) == (4, 6.0)


@pytest.mark.parametrize("family", COMPONENTS)
def test_a_whole_network_loads_in_diffusers(world, tuned, family):
    final, network = tuned(family, f"{family}-full", {"model.name": "full"})
    component = COMPONENTS[family]
    plain = diffusers.AutoModel.from_pretrained(str(final), subfolder=component)
    torch.testing.assert_close(answer(plain, family), answer(network, family), rtol=1e-6, atol=1e-6)
    pipe = diffusers.DiffusionPipeline.from_pretrained(world.folder / family, **{component: plain})
    assert getattr(pipe, component) is plain


@pytest.fixture(scope="module")
def run(world):
    return world.train("run", {"train.steps": 2, "model.rank": 4})


def test_the_card_says_how_it_was_made(world, run):
    _, front, text = (run / "final" / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["library_name"] == "diffusers"
    assert {"diffpo", "dpo", "lora"} <= set(front["tags"])
    assert not {"base_model", "datasets"} & front.keys()  # local folders are no ids of the Hub
    assert "/sd15`" in text and str(world.folder) not in text and "pairs.jsonl" in text and "dpo" in text
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert "## Last update (2)" in text and f"| loss | {last['loss']:.5g} |" in text
    config = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    there = {k: v for k, v in yaml.safe_load((run / "config.yaml").read_text()).items() if " " not in k}
    assert config == published(there)
    assert {k: v for k, v in config["train"].items() if k != "output"} == {
        k: v for k, v in there["train"].items() if k != "output"
    }


def test_the_same_adapter_is_the_same_bytes(world, tuned, tmp_path):
    """A set and the library's table of two words have no order: eight files agree by chance in 1 of 128."""
    base = str(world.folder / "sd15")
    _, network = tuned("sd15", "bytes", {"model.rank": 4})
    weights, written = dict(network.state_dict()), set()
    for name in map(str, range(8)):
        (tmp_path / name).mkdir()
        LoRA(path=base, rank=4).save(tmp_path / name, find_base(base), network, weights)
        written.add((tmp_path / name / LORA_FILE).read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "0" / LORA_FILE, "pt") as file:
        targets = json.loads(file.metadata()["lora_adapter_metadata"])["unet.target_modules"]
    assert targets == sorted(targets) and len(targets) > 1


@pytest.mark.parametrize("changes", [{"model.rank": 4}, {"model.name": "full"}], ids=["lora", "full"])
def test_no_exported_file_names_a_place_of_this_machine(world, tuned, changes):
    final, _ = tuned("sd15", f"published-{changes.get('model.name')}", changes)
    files = [file for file in final.rglob("*") if file.is_file()]
    assert len(files) > 1
    for file in files:
        for secret in (str(world.folder), f"{Path.home()}/"):
            assert secret.encode() not in file.read_bytes(), f"{file.name} holds {secret}"


def test_the_card_names_what_is_on_the_hub(tmp_path):
    from diffpo.config.run import build
    from diffpo.training.export import model_card

    tree = {
        "model": {"name": "full", "path": "owner/model"},
        "method": {"name": "sft"},
        "data": {"name": "pairs", "path": "owner/pairs"},
        "train": {"steps": 1},
    }
    card = model_card(build(tree), tmp_path, "unet", set())
    assert (card.data.base_model, card.data.datasets) == ("owner/model", ["owner/pairs"])
    assert "sft" in card.data.tags and "lora" not in card.data.tags
    assert 'from_pretrained("owner/model", unet=unet)' in card.content and "grid.png" not in card.content


def test_ids_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model").mkdir()
    ids = {"owner/model": True, "here/model": False, "/a/b": False, "./a": False, "shapes:base": False, "a/b/c": False}
    assert {path: is_hub_id(path) for path in ids} == ids


def test_a_kill_during_the_replacement_leaves_one_whole_export(untrained):
    """A process that exports again and again is killed 20 times, at different moments after a replacement."""
    _, exported = untrained("sd15", "killed", {"model.rank": 4})
    final = exported()
    whole, replaced = weights(final.parent), 0
    held = {file.name: file.stat().st_size for file in final.iterdir()}
    assert held.keys() == {"README.md", "pytorch_lora_weights.safetensors"}

    def which() -> tuple[int, int]:
        """What tells one folder from the next under the same name: inode numbers alone are used again."""
        return final.stat().st_ino, final.stat().st_ctime_ns

    for moment in range(20):
        before, child = which(), os.fork()
        if child == 0:
            torch.set_num_threads(1)
            try:
                while True:
                    exported()
            finally:
                os._exit(1)
        while which() == before:
            time.sleep(0.001)
        replaced += 1
        time.sleep(0.005 * moment)  # an export takes some 0.1 s
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert {file.name: file.stat().st_size for file in final.iterdir()} == held
        assert difference(weights(final.parent), whole) == 0
    assert replaced == 20, "the kills came before anything was replaced"
    exported()
    assert not [path.name for path in final.parent.iterdir() if "unfinished" in path.name]


def test_what_somebody_puts_beside_the_weights_stays(untrained):
    _, exported = untrained("sd15", "noted", {"model.rank": 4})
    final = exported()
    (final / "mine").mkdir()
    (final / "mine" / "notes.txt").write_text("good at hands")
    exported()
    assert (final / "mine" / "notes.txt").read_text() == "good at hands"
    assert "final/README.md" in (final.parent / "run.json").read_text()
    assert "notes" not in (final.parent / "run.json").read_text()


def test_a_push_without_network_leaves_the_export(world, run):
    before = weights(run)
    with pytest.raises(UserError, match="is complete, but could not be pushed to owner/name"):
        world.train("run", {"train.steps": 2, "model.rank": 4}, push="owner/name")
    assert difference(weights(run), before) == 0
