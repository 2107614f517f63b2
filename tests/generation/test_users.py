"""Images for users: what the adapter is told, for each image its own user; blends, strength, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tiny import save_pipeline
from tiny_users import save_user_run, save_users

from diffpo.errors import UserError
from diffpo.generation.generate import generate
from diffpo.generation.personal import make_images, plan_sittings
from diffpo.generation.request import Request
from diffpo.generation.settings import GenerateOptions
from diffpo.generation.users import blended, normalised, parse_blend
from diffpo.media.folder import read_media, read_settings
from diffpo.media.users import Users
from diffpo.models.user_files import INDEX, load_user_adapter

PROMPTS = ["a red circle", "a blue square", "a green cross"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_pipeline("sd15", tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run folder whose `final/` holds a user adapter that has learned something."""
    return save_user_run(base, tmp_path_factory.mktemp("runs") / "ppd")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    draws = {name: [[f"{name} {i}"] for i in range(2)] for name in ("ann", "bob", "cat", "dan")}
    return save_users(tmp_path_factory.mktemp("users") / "users", draws, unseen=("cat", "dan"))


@pytest.fixture
def options(base, run, people):
    def make(**given):
        usual = {"steps": 2, "guidance": 3.0, "size": (16, 16), "batch": 3, "device": "cpu"}
        return GenerateOptions(model=str(base), tuned=str(run), **usual | given)

    return make


def pixels(folder):
    return [np.asarray(Image.open(folder / item.file)) for item in read_media(folder)]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_image_for_a_user_is_what_the_pipeline_makes_when_told_the_user(options, base, run, people, tmp_path):
    work = generate(options(users=str(people), blend={"bob": 1.0}, strength=0.7), PROMPTS, tmp_path / "bob")
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    adapter, users = load_user_adapter(pipe, run), Users.open(people)
    states = users.states(users.draws_of("bob")[0])
    with adapter.speaking(states.expand(3, -1, -1), 0.7), torch.no_grad():
        seeds = [torch.Generator().manual_seed(item.seed) for item in work.media]
        made = pipe(
            PROMPTS, num_inference_steps=2, guidance_scale=3.0, height=16, width=16, generator=seeds, output_type="np"
        )
    expected = [(image * 255).round().astype(np.uint8) for image in made.images]
    assert same(pixels(tmp_path / "bob"), expected)
    said = read_settings(tmp_path / "bob")
    assert said["blend"] == {"bob": 1.0} and said["strength"] == 0.7


def test_nobody_and_strength_zero_are_the_base(options, base, people, tmp_path):
    plain = generate(replace(options(), tuned=None), PROMPTS, tmp_path / "plain")
    nobody = generate(options(), PROMPTS, tmp_path / "nobody")
    silent = generate(options(users=str(people), blend={"ann": 1.0}, strength=0.0), PROMPTS, tmp_path / "silent")
    loud = generate(options(users=str(people), blend={"ann": 1.0}), PROMPTS, tmp_path / "loud")
    assert same(pixels(plain.folder), pixels(nobody.folder)) and same(pixels(plain.folder), pixels(silent.folder))
    assert not same(pixels(plain.folder), pixels(loud.folder))
    with pytest.raises(UserError, match=r"made with other settings: .*blend was .*ann"):
        generate(options(), PROMPTS, tmp_path / "loud")


def test_a_blend_is_as_long_as_what_its_users_have_in_common(people, tmp_path):
    users = Users.open(people)
    ann, bob = (users.states(users.draws_of(name)[0]) for name in ("ann", "bob"))
    states, strength = blended(users, {"ann": 0.7, "bob": 0.3})
    assert torch.allclose(states, 0.7 * ann + 0.3 * bob)
    assert 0 < strength < 1
    assert blended(users, {"ann": 1.0}) == (pytest.approx(ann), pytest.approx(1.0))

    twins = save_users(tmp_path / "twins", {"up": [["x"]], "down": [["y"]]})
    from safetensors.torch import save_file

    up = torch.ones(1, 2, 6)
    save_file({"states": torch.cat([up, -up])}, twins / "states.safetensors")
    opposites = Users.open(twins)
    found = [blended(opposites, {"up": 1 - share, "down": share}) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert [round(strength, 6) for _, strength in found] == [1.0, 0.5, 0.0, 0.5, 1.0]
    assert [float(states.sum().sign()) for states, _ in found] == [1, 1, 0, -1, -1]


def test_shares_are_read_and_made_to_sum_to_one():
    assert parse_blend("ann:0.7, bob:0.3") == {"ann": 0.7, "bob": 0.3}
    assert parse_blend("a:b:1") == {"a:b": 1.0}
    assert normalised({"ann": 0.7, "bob": 0.3}) == ({"ann": 0.7, "bob": 0.3}, False)
    shares, changed = normalised({"ann": 2, "bob": 6})
    assert shares == {"ann": 0.25, "bob": 0.75} and changed
    for wrong in ("ann", "ann:x", "ann:1,ann:2", ":1"):
        with pytest.raises(UserError, match="write users with their shares"):
            parse_blend(wrong)
    for shares in ({"ann": 0.0}, {"ann": -1.0, "bob": 2.0}, {"ann": float("nan")}):
        with pytest.raises(UserError, match="numbers from 0, not all of them 0"):
            normalised(shares)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"blend": {"anne": 1.0}}, r"knows no user 'anne'\. Did you mean ann"),
        ({"tuned": None}, r"has no user adapter\. Give a run of `diffpo train` with model=user"),
    ],
)
def test_who_cannot_be_told_is_refused_before_anything_is_loaded(options, people, given, message):
    with pytest.raises(UserError, match=message):
        Request.of(replace(options(users=str(people), blend={"ann": 1.0}), **given))


def test_states_of_another_embedder_are_refused(options, people, run, tmp_path):
    other = save_users(tmp_path / "users", {"ann": [["x"]]})
    said = json.loads((other / "users.json").read_text())
    (other / "users.json").write_text(json.dumps(said | {"embedder": "another"}))
    with pytest.raises(UserError, match=r"6 numbers of another, but the adapter was trained on 6 numbers of tiny"):
        Request.of(options(users=str(other), blend={"ann": 1.0}))
    assert json.loads((run / "final" / INDEX).read_text())["embedder"] == "tiny"


def test_both_users_and_blend_are_needed(options, people):
    for given in ({"users": str(people)}, {"blend": {"ann": 1.0}}):
        with pytest.raises(UserError, match="takes both"):
            options(**given)


def test_every_user_has_prompts_of_their_own_none_of_them_a_support_pairs(people):
    users, prompts = Users.open(people), ["ANN  0", *(f"prompt {i}" for i in range(12))]
    sittings = plan_sittings(users, ["ann", "bob", "cat", "dan"], prompts, 3, seed=0)
    assert [sitting.user for sitting in sittings] == [name for name in ("ann", "bob", "cat", "dan") for _ in range(3)]
    assert len({sitting.prompt for sitting in sittings}) == 12
    assert "ANN  0" not in [sitting.prompt for sitting in sittings if sitting.user == "ann"]
    for sitting in sittings:
        assert sitting.own in users.draws_of(sitting.user)
        (other,) = [name for name in users.draws if sitting.other in users.draws_of(name)]
        assert other != sitting.user and users.seen[other] == users.seen[sitting.user] == sitting.seen
    assert {sitting.own for sitting in sittings if sitting.user == "ann"} == set(users.draws_of("ann"))
    with pytest.raises(UserError, match="4 users need 9 prompts each: there are 13 prompts"):
        plan_sittings(users, ["ann", "bob", "cat", "dan"], prompts, 9, seed=0)


def test_one_folder_holds_images_for_many_users(options, people, tmp_path):
    users = Users.open(people)
    sittings = plan_sittings(users, ["ann", "bob"], [*PROMPTS, "a cyan bar"], 2, seed=0)
    made = make_images(options(), users, sittings, tmp_path, {"rival": replace(options(), tuned=None)})
    assert {name: len(media) for name, media in made.items()} == {"base": 4, "own": 4, "others": 4, "rival": 4}
    assert same(pixels(tmp_path / "base"), pixels(tmp_path / "rival"))
    alone = options(users=str(people), blend={"bob": 1.0}, batch=4)
    own = pixels(tmp_path / "own")
    bob = [i for i, sitting in enumerate(sittings) if sitting.own == users.draws_of("bob")[0]]
    expected = generate(alone, [sittings[i].prompt for i in bob], tmp_path / "bob")
    assert all(
        np.abs(own[i].astype(int) - image).max() <= 1 for i, image in zip(bob, pixels(expected.folder), strict=True)
    )
    assert not same(own, pixels(tmp_path / "others"))
