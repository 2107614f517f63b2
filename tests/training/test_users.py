"""PPD, from a table with users to an export: the same after an interruption, and DPO where nothing was learned."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml
from runs import ROOT, World, assert_same, contents, forget_accelerator, metrics, weights
from tiny import save_pipeline
from tiny_steps import draws, make, pair_batch, with_users
from tiny_users import save_users

from diffpo.captioners.contrast import ClipEmbedder
from diffpo.config.run import build
from diffpo.core.step import preference_step
from diffpo.curate.embedding import Embedding, read_embedder
from diffpo.errors import ConfigError, UserError
from diffpo.generation.generate import generate
from diffpo.generation.settings import GenerateOptions
from diffpo.media.folder import open_clip
from diffpo.media.users import EMBEDDER, Users
from diffpo.methods import METHODS
from diffpo.training import samples
from diffpo.training.processes import make_accelerator
from diffpo.training.train import prepare_data, train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World.make(tmp_path_factory.mktemp("users"))
    rows = [json.loads(line) for line in (world.folder / "pairs" / "pairs.jsonl").read_text().splitlines()]
    rows = [row | {"user_id": f"user {i % 3}"} for i, row in enumerate(rows)]
    (world.folder / "pairs" / "users.jsonl").write_text("\n".join(map(json.dumps, rows)))
    users = save_users(world.folder / "users", {f"user {i}": [["x"], ["y"]] for i in range(3)}, unseen=["user 2"])
    Embedding(ClipEmbedder(path=str(world.folder / "clip"))).write(users / EMBEDDER)
    return world


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Each run chooses its precision anew."""
    forget_accelerator()
    yield
    forget_accelerator()


def told(world, **more):
    users = {"model.name": "user", "method.name": "ppd", "data.path": "users.jsonl"}
    return users | {"data.users": str(world.folder / "users")} | more


def test_a_run_that_was_interrupted_is_the_same(world):
    """The users' draws and the users that are dropped included."""
    straight = world.train("straight", told(world))
    world.train("resumed", told(world, **{"train.steps": 1}))
    assert_same(contents(straight), contents(world.train("resumed", told(world))))
    first, *others = metrics(straight)
    assert first["loss"] == pytest.approx(0.6931472) and all(line["loss"] != first["loss"] for line in others)
    assert (weights(straight)["ip_adapter.1.to_v_ip.weight"] != 0).any()
    card = (straight / "final" / "README.md").read_text()
    said, _ = read_embedder(straight / "final" / EMBEDDER)
    assert said == {"name": "clip", "options": asdict(ClipEmbedder(path=".../clip"))}, "no place of this machine"
    assert "load_user_adapter(pipe" in card and "load_ip_adapter(" in card and "load_lora_weights" not in card


def test_samples_are_drawn_for_nobody_and_for_the_first_users_to_learn_from(world, monkeypatch):
    drawn, draw = [], samples.draw_grid
    monkeypatch.setattr(samples, "draw_grid", lambda *grid: drawn.append(grid) or draw(*grid))
    settings = {"train.learning_rate": 0.1, "train.sample_every": 3, "sample.prompts": ["thing 1"]}
    world.train("shown", told(world, **settings))
    ((columns, (row,)),) = drawn
    assert columns == ["base", "step 3", "step 3: user 0", "step 3: user 1"]
    base, nobody, *users = (np.asarray(cell.clip.first) for cell in row.cells)
    assert np.array_equal(base, nobody)
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations((base, *users), 2))


def test_held_out_pairs_are_always_told_their_users(world):
    """Dropping users is for what is learned: a held-out loss is that of people who are known."""
    held_out = {"data.validation_fraction": 0.5, "train.eval_every": 1, "data.user_dropout": 1.0, "train.batch": 1}
    config = build(world.tree("held out", told(world) | held_out))
    _, loader, judged, _ = prepare_data(config, make_accelerator(config), Users.open(config.data.users))
    assert not loader.batch(loader.groups[0], 0).cond.chosen.user.any()
    (batch, *_) = judged.held_out(1)
    assert batch.cond.chosen.user.flatten(1).any(1).all()


def test_the_papers_base_as_its_config_says(world):
    """Stable Cascade's stage C in half precision: samples while training, and images for users and for nobody."""
    model = save_pipeline("stable-cascade", world.folder / "cascade")
    tree = yaml.safe_load((ROOT / "configs" / "stable-cascade-ppd.yaml").read_text())
    small = world.tree("cascade run", told(world))
    tree["model"] |= {"path": str(model), "vae": str(model)}
    tree["data"] = small["data"] | {"resolution": 64, "user_dropout": 0.1}
    tree["train"] |= {"steps": 2, "batch": 2, "accumulate": 1, "output": small["train"]["output"], "warmup_steps": 0}
    tree["train"] |= {"sample_every": 2, "learning_rate": 0.1}
    tree["sample"] |= {"prompts": ["thing 1"], "steps": 2, "size": [128, 128]}
    run = train(build(tree))
    assert (run / "samples" / "step-000002.png").is_file()
    usual = {"model": str(model), "tuned": str(run), "steps": 2, "size": (128, 128), "device": "cpu"}
    usual |= {"dtype": "bfloat16", "seeds": (1,)}
    users, found = {"users": str(world.folder / "users")}, []
    for name, more in (("nobody", {}), ("one", users | {"blend": {"user 0": 1.0}})):
        done = generate(GenerateOptions(**usual | more), ["a thing"], world.folder / f"cascade {name}")
        found.append(open_clip(done.folder, done.media[0]).first.tobytes())
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_a_fresh_adapter_is_dpo(pipelines, name):
    """To the bit, beside a LoRA that has learned something."""
    batch, losses = pair_batch(name, [0, 1, 2]), []
    for method, tuning in (("ppd", "user"), ("dpo", "lora")):
        models = make(pipelines(name), tuning, rank=2)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, parameter in models[0].network.named_parameters():
                if ".lora_" in key:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        pairs = with_users(batch) if tuning == "user" else batch
        losses.append(preference_step(METHODS[method](beta=50.0), *models, pairs, draws(pairs)).loss)
    assert torch.equal(*losses) and losses[0].std() > 1e-4


def test_users_and_models_that_are_told_them_go_together(world):
    for changes, words in (
        ({"data.users": None}, "data.users: is missing, and model=user is told users"),
        ({"model.name": "lora"}, "data.users: only model=user is told users"),
        ({"model.name": "lora", "data.users": None}, "method=ppd: tells the model its users, so it needs model=user"),
        ({"train.select": {"scorer": "shapes", "prompts": ["a"]}}, "train.select: judges images that are made for nob"),
    ):
        with pytest.raises(ConfigError, match=words):
            build(world.tree("x", told(world) | changes))
    with pytest.raises(UserError, match="ppd needs a `user_id` column"):
        world.train("x", told(world) | {"data.path": "pairs.jsonl"})
