"""Settings that never reached the loop without a test noticing: each must change something that can be seen."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hand import answers, gradients, judge
from runs import World, difference, forget_accelerator, metrics
from safetensors.torch import load_file

from diffpo.config.run import Train
from diffpo.core.types import Rng
from diffpo.errors import UserError
from diffpo.methods import METHODS, TwoSidedMethod
from diffpo.training.learner import allow_tf32

LEARNED = {
    "seed": 1,
    "batch": 2,
    "accumulate": 2,
    "learning_rate": 5e-4,
    "schedule": "linear",
    "warmup_steps": 2,
    "optimizer": "adafactor",
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-2,
    "weight_decay": 0.5,
    "max_grad_norm": 1e-9,
    "mixed_precision": "bf16",
    "dtype": "float64",
}
"""Fields of `train`, and values that must change the weights after two updates."""

SEEN_ELSEWHERE = {
    "select": "test_the_best_update_is_exported",
    "steps": "test_metrics_have_the_names_of_trl",
    "output": "test_the_folder_holds_what_the_readme_says",
    "ema": "test_samples_are_drawn_with_the_average",
    "compile": "test_policy_and_reference_are_laid_out_and_compiled_alike",
    "channels_last": "test_policy_and_reference_are_laid_out_and_compiled_alike",
    "tf32": "test_a_gpu_multiplies_in_single_precision_where_it_is_asked_for",
    "fused": "test_fused_kernels_are_refused_where_there_are_none",
    "split_forward": "test_split_forward_asks_once_for_each_side",
    "checkpoint_every": "test_the_folder_holds_what_the_readme_says",
    "checkpoint_minutes": "test_checkpoints_by_the_clock_in_a_run",
    "keep_last": "test_the_folder_holds_what_the_readme_says",
    "async_checkpoints": "test_updates_go_on_while_a_checkpoint_is_written",
    "eval_every": "test_metrics_have_the_names_of_trl",
    "eval_pairs": "test_as_many_held_out_pairs_are_judged_as_asked_for",
    "sample_every": "test_samples_stand_beside_the_base",
    "log_every": "test_one_line_for_every_so_many_updates",
    "trackers": "test_trackers_are_told",
    "project": "test_trackers_are_told",
}
"""Fields that do not touch the weights of a tiny run: the test that sees what they do."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("settings"))


@pytest.fixture(autouse=True)
def another_accelerator():
    """Runs of one process may differ in precision."""
    yield
    forget_accelerator()


def prepare(world, **changes):
    """A learner, its batches of two updates, and the held-out pairs."""
    from diffpo.config.run import build
    from diffpo.training.processes import make_accelerator
    from diffpo.training.train import prepare_data, prepare_learner

    held_out = {"data.validation_fraction": 0.2, "train.eval_every": 1}
    config = build(world.tree("settings", held_out | changes))
    accelerator = make_accelerator(config)
    plan, loader, held_out, _ = prepare_data(config, accelerator)
    learner = prepare_learner(config, accelerator)
    return learner, list(loader.updates(plan, 0, 2)), held_out


def trained(learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().double() for name, p in learner.policy.network.named_parameters() if p.requires_grad}


def learned(world, **changes) -> dict[str, torch.Tensor]:
    from diffpo.training.update import update

    learner, updates, _ = prepare(world, **changes)
    for done, batches in enumerate(updates):
        update(learner, batches, epoch=0, micro_seed=done)
    return trained(learner)


@pytest.fixture(scope="module")
def plain(world):
    yield learned(world)
    forget_accelerator()


@pytest.mark.parametrize("name", LEARNED)
def test_a_setting_of_the_training_changes_what_is_learned(world, plain, name):
    assert LEARNED[name] != getattr(Train(steps=3, learning_rate=1e-3, batch=4), name)
    assert difference(learned(world, **{f"train.{name}": LEARNED[name]}), plain) > 0


def test_every_setting_of_the_training_is_seen():
    assert {field.name for field in fields(Train)} == {*LEARNED, *SEEN_ELSEWHERE}


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_policy_and_reference_are_laid_out_and_compiled_alike(world, tuning, monkeypatch):
    """As the config says, on a CPU too; nothing is compiled before it is asked."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(world.folder))  # else it would be set for all tests after this

    def found(**changes) -> set[tuple[bool, bool]]:
        learner, *_ = prepare(world, **{"model.name": tuning} | {f"train.{key}": x for key, x in changes.items()})
        told = set()
        for denoiser in (learner.policy, learner.reference.denoiser):
            laid = denoiser.layout == torch.channels_last
            filters = [p for p in denoiser.network.parameters() if p.ndim == 4 and 1 not in p.shape]
            assert filters and all(p.is_contiguous(memory_format=torch.channels_last) == laid for p in filters)
            told |= {(laid, part._compiled_call_impl is not None) for part in denoiser.regions()}
            assert not [module for module in denoiser.network.modules() if "forward" in vars(module)], "fused"
        return told

    assert found() == found(channels_last=False, fused=False) == {(False, False)}
    assert found(channels_last=True) == {(True, False)}
    assert found(compile="regional") == {(False, True)}


@pytest.mark.parametrize(("precision", "usual"), [("no", False), ("bf16", True), ("fp16", True)])
def test_a_gpu_multiplies_in_single_precision_where_it_is_asked_for(precision, usual, monkeypatch):
    """TF32 is for what half precision leaves in float32, unless it is asked for or refused."""
    before = torch.get_float32_matmul_precision()
    for asked, allowed in ((None, usual), (True, True), (False, False)):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not allowed)
        allow_tf32(Train(steps=1, batch=1, mixed_precision=precision, tf32=asked), torch.device("cuda"))
        found = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(before)
        assert found == (allowed, "high" if allowed else "highest")


def test_fused_kernels_are_refused_where_there_are_none(world):
    """Asked for, and not merely the default."""
    for precision in ("bf16", "no"):
        with pytest.raises(UserError, match=r"fused=true needs .* on a GPU .* is a UNet2DConditionModel on cpu with"):
            prepare(world, **{"train.fused": True, "train.mixed_precision": precision})
        forget_accelerator()


@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if issubclass(cls, TwoSidedMethod)])
def test_every_setting_of_a_method_changes_its_loss_or_its_gradients(name):
    """On answers at alpha 1/2 whose label is soft, where `dense` reads others.

    Inversions and noises act before the answers: see test_inverted_steps and test_noising.
    """
    scale = {"scale": 1.0} if name == "mapo" else {"beta": 0.1}
    plain = METHODS[name](**scale, dense=None, sft_weight=0.2, sft_side="better")
    given = {"guard": 0.9, "sft_weight": 0.5, "sft_side": "chosen", "dense": "frame", "flow_weight": "squared"}
    other = answers(1.5, 1) if plain.needs_reference else None

    def outcome(method) -> torch.Tensor:
        policy = answers(1, 2).map(lambda x: replace(x, noised=replace(x.noised, alpha=x.noised.alpha / 2)))
        by = gradients(method, policy, other, 0.8)
        return torch.cat([judge(method, policy, other, 0.8).loss, *(side.flatten() for side in by)])

    for field in fields(plain):
        if field.name in ("inversion", "noise"):
            continue
        changed = replace(plain, **{field.name: given.get(field.name) or 1.5 * getattr(plain, field.name)})
        assert not torch.equal(outcome(changed), outcome(plain)), field.name


def test_the_draws_follow_the_epoch(world, monkeypatch):
    """Two updates of all eight pairs are two epochs: other times and other noises."""
    import diffpo.training.update as module

    epochs = []

    class Noting(Rng):
        def __init__(self, seed, epoch, index):
            epochs.append(epoch)
            super().__init__(seed, epoch, index)

    monkeypatch.setattr(module, "Rng", Noting)
    world.train("epochs", {"train.batch": 12, "train.steps": 3})
    assert epochs == [0, 1, 2]


def test_another_epoch_gives_another_loss(world):
    from diffpo.training.update import forward

    learner, [[batch], *_], _ = prepare(world)
    first, again, second = (forward(learner, batch, epoch).metrics["error/chosen"] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.isclose(first, second, rtol=1e-3).any()


@pytest.mark.parametrize("most", [1e-4, None])
def test_the_gradient_is_clipped_before_the_step(world, most):
    """Its norm, as the optimizer sees it, is at most what was asked for; without a limit it is what was logged."""
    from diffpo.training.update import update

    learner, [batches, *_], _ = prepare(world, **{"train.max_grad_norm": most})
    norms = []

    def note(optimizer, *_):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())

    learner.optimizer.optimizer.register_step_pre_hook(note)
    logged = update(learner, batches, epoch=0, micro_seed=0)["grad_norm"]
    assert logged > 1e-3
    assert norms == [pytest.approx(most or logged, rel=1e-3)]


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_runs_in_the_precision_that_was_asked_for(world, precision, dtype):
    """In updates and in held-out judgements."""
    from diffpo.training.update import evaluate, update

    learner, [batches, *_], held_out = prepare(world, **{"train.mixed_precision": precision})
    seen = set()
    linear = next(x for x in learner.policy.network.modules() if isinstance(x, torch.nn.Linear))
    linear.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    update(learner, batches, epoch=0, micro_seed=0)
    assert seen == {dtype}
    seen.clear()
    evaluate(learner, held_out)
    assert seen == {dtype}


def test_dropout_is_off_while_held_out_pairs_are_judged_and_on_again_afterwards(world):
    from diffpo.training.update import evaluate, update

    learner, updates, held_out = prepare(world, **{"model.dropout": 0.5, "method.name": "sft"})
    modes = []
    dropouts = [x for x in learner.policy.network.modules() if isinstance(x, torch.nn.Dropout) and x.p == 0.5]
    dropouts[0].register_forward_hook(lambda module, *_: modes.append(module.training))
    update(learner, updates[0], epoch=0, micro_seed=0)
    assert modes and all(modes)
    modes.clear()
    assert evaluate(learner, held_out) == evaluate(learner, held_out)
    assert modes and not any(modes)
    modes.clear()
    update(learner, updates[1], epoch=0, micro_seed=1)
    assert modes and all(modes)


def test_captions_of_held_out_pairs_are_not_dropped(world):
    """And those of the pairs to learn from are."""
    texts = {}
    for dropout in (0.0, 1.0):
        _, [[batch], *_], held_out = prepare(world, **{"data.caption_dropout": dropout})
        texts[dropout] = batch.cond.chosen.text, next(iter(held_out.held_out(2))).cond.chosen.text
    assert not texts[0.0][0].equal(texts[1.0][0])
    assert texts[0.0][1].equal(texts[1.0][1])


def test_samples_are_drawn_with_the_average(world, monkeypatch):
    from diffpo.training.samples import SampleGrids

    draw, seen = SampleGrids.draw, []

    def watched(self, step):
        network = self._drawer._policy.network
        seen.append({name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad})
        draw(self, step)

    monkeypatch.setattr(SampleGrids, "draw", watched)
    run = world.train("sampled", {"train.ema": 0.9, "train.sample_every": 3, "sample.prompts": ["thing 1"]})
    held = run / "checkpoints" / "step-000003"
    (drawn,) = seen
    assert difference(drawn, load_file(held / "average.safetensors")) == 0
    assert difference(drawn, load_file(held / "weights.safetensors")) > 1e-6


@pytest.mark.parametrize(("split", "sizes"), [(False, {8: 1}), (True, {4: 2})])
def test_split_forward_asks_once_for_each_side(world, split, sizes):
    """Of four pairs, with gradients; the reference is asked alike."""
    from diffpo.training.update import update

    learner, [batches, *_], _ = prepare(world, **{"train.split_forward": split})
    asked = Counter()

    def note(_, arguments):
        asked[torch.is_grad_enabled(), len(arguments[0])] += 1

    learner.policy.network.register_forward_pre_hook(note)
    update(learner, batches, epoch=0, micro_seed=0)
    assert asked == Counter({(grad, rows): n for grad in (True, False) for rows, n in sizes.items()})


def test_as_many_held_out_pairs_are_judged_as_asked_for(world):
    from diffpo.training.update import evaluate

    learner, _, held_out = prepare(world, **{"train.eval_pairs": 1, "train.batch": 1})
    asked = []
    learner.policy.network.register_forward_pre_hook(lambda _, arguments: asked.append(len(arguments[0])))
    evaluate(learner, held_out)
    assert asked == [2, 2], "policy and reference, of both sides of one pair"


def test_one_line_for_every_so_many_updates(world):
    lines = metrics(world.train("lines", {"train.log_every": 2}))
    assert [line["step"] for line in lines] == [2, 3], "the last one always"


def test_an_update_without_a_term_is_a_loss_of_zero(world):
    """And moves nothing: no number is NaN, and a term is not missed in silence."""
    from diffpo.training.alerts import Alerts
    from diffpo.training.update import evaluate, update

    rows = [json.loads(line) for line in (world.folder / "pairs" / "pairs.jsonl").read_text().splitlines()]
    ties = "\n".join(json.dumps(row | {"segments": [0]}) for row in rows)
    (world.folder / "pairs" / "ties.jsonl").write_text(ties)
    dense = {"data.path": "ties.jsonl", "method.dense": "frame", "method.guard": 0.6, "train.weight_decay": 0.0}
    learner, updates, held_out = prepare(world, **dense)
    before = {name: p.clone() for name, p in trained(learner).items()}
    alerts, said = Alerts(), []
    for done, batches in enumerate(updates):
        told = update(learner, batches, epoch=0, micro_seed=done)
        said += alerts.look(done + 1, told)
        assert (told["loss"], told["grad_norm"], told["terms"]) == (0, 0, 0)
    assert difference(trained(learner), before) == 0
    assert evaluate(learner, held_out)["eval/loss"] == 0
    assert len(said) == 1 and "update 1 had nothing to learn from" in said[0]


@pytest.mark.parametrize(("epsilon", "said"), [(1e-6, True), (1e-15, False)])
def test_gradients_below_the_optimizers_epsilon_are_said_once(world, capfd, epsilon, said):
    """IPO's are some beta^2 times smaller than DPO's: their norm is about 4e-6 here."""
    world.train(f"ipo-{said}", {"method.name": "ipo", "train.adam_epsilon": epsilon})
    assert capfd.readouterr().err.count("the gradients are smaller than train.adam_epsilon") == said


def test_the_named_tests_exist():
    text = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)\(", text))
    assert set(SEEN_ELSEWHERE.values()) <= defined
