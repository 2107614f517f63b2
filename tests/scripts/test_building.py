"""The training loop of the build script: a killed run continues as if nothing had happened."""

import build_shapes
import pytest
import torch
from shapes_builder.building import Plan, learning_rate, load_average, step_generator, train
from shapes_builder.make_pairs import plan_pairs
from shapes_builder.sampling import sample_specs
from shapes_builder.train_pickscore import hard_captions

from diffpo.worlds.assets import asset_path
from diffpo.worlds.shapes.scenes import SPLITS, parse_caption, split_captions, split_of


def model_and_loss():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)

    def loss(generator):
        x = torch.randn(4, 3, generator=generator)
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    return model, loss


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    plan = Plan(steps=12, learning_rate=0.1, warmup=2, save_minutes=0.0)
    straight, loss = model_and_loss()
    train("m", straight, loss, plan, tmp_path / "a")

    def dies(generator):
        dies.calls += 1
        if dies.calls == 8:
            raise KeyboardInterrupt
        return killed_loss(generator)

    dies.calls = 0
    killed, killed_loss = model_and_loss()
    with pytest.raises(KeyboardInterrupt):
        train("m", killed, dies, plan, tmp_path / "b")
    again, loss = model_and_loss()
    train("m", again, loss, plan, tmp_path / "b")
    assert torch.equal(straight.weight, again.weight)
    other, _ = model_and_loss()
    assert not torch.equal(straight.weight, other.weight)
    load_average("m", other, tmp_path / "b")
    assert torch.equal(straight.weight, other.weight)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model, _ = model_and_loss()
    with pytest.raises(FloatingPointError, match="step 0"):
        train("m", model, lambda generator: {"loss": model.weight.sum() * float("nan")}, Plan(3, 0.1), tmp_path)


def test_a_missing_checkpoint_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"m\.pt.*--stage of the world's build script"):
        load_average("m", torch.nn.Linear(1, 1), tmp_path)


def test_a_run_can_stop_long_before_its_learning_rate_has_fallen():
    short, long = (
        Plan(steps=steps, learning_rate=1.0, warmup=10, horizon=horizon) for steps, horizon in ((20, 100), (100, None))
    )
    assert [learning_rate(short, step) for step in range(20)] == [learning_rate(long, step) for step in range(20)]


def test_the_learning_rate_warms_up_and_decays():
    plan = Plan(steps=100, learning_rate=1.0, warmup=10)
    assert learning_rate(plan, 0) == pytest.approx(0.1)
    assert learning_rate(plan, 10) == pytest.approx(1.0)
    assert learning_rate(plan, 55) == pytest.approx(0.505)
    assert learning_rate(plan, 100) == pytest.approx(0.01)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_planned_pairs_are_of_their_split_with_the_stated_shares(split):
    pairs = plan_pairs(split, 900, seed=0)
    assert len(pairs) == 900 and pairs == plan_pairs(split, 900, seed=0)
    for first, second in pairs:
        assert first.prompt == second.prompt and split_of(first.prompt) == split
        assert first.seed != second.seed
    assert len({job for pair in pairs for job in pair}) == len({job.seed for pair in pairs for job in pair}) == 900
    for models, share in ((["base", "base"], 0.467), (["base", "weak"], 0.267), (["weak", "weak"], 0.267)):
        count = sum(sorted((a.model, b.model)) == models for a, b in pairs)
        assert count / 900 == pytest.approx(share, abs=0.07)


def test_training_scenes_and_hard_captions_come_from_the_train_split():
    generator = step_generator(0, 0)
    for spec in sample_specs("train", 100, generator):
        hard = hard_captions(spec, generator)
        assert len({spec.caption, *hard}) == 4
        for caption in (spec.caption, *hard):
            assert split_of(caption) == "train"
            assert parse_caption(caption) != spec.mirrored()


def test_splits_share_no_prompt():
    parts = [set(split_captions(split)) for split in SPLITS]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_the_build_script_writes_the_prompts_that_are_shipped(tmp_path, monkeypatch):
    places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    threads = ["--threads", str(torch.get_num_threads())]
    monkeypatch.setattr("sys.argv", ["build_shapes.py", "--stage", "prompts", *places, *threads])
    build_shapes.main()
    for split in SPLITS:
        made = tmp_path / "out" / "prompts" / f"{split}.txt"
        assert made.read_bytes() == asset_path(f"shapes/prompts/{split}.txt").read_bytes()
