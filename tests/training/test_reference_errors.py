"""The reference's errors on disk: the same numbers as with a reference that is asked, and no second network."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from real_clips import video
from runs import World, difference, forget_accelerator, metrics, weights

from diffpo.data.plan import Schedule
from diffpo.disk import progress
from diffpo.errors import ConfigError
from diffpo.methods import METHODS
from diffpo.training.reference_errors import KeptErrors

DOUBLE = {"train.dtype": "float64", "data.caption_dropout": 0.5}
FULL = {"model.name": "full", "train.learning_rate": 1e-4}
DRAWS = {"data.reference_draws": 2}
HELD_OUT = {"data.validation_fraction": 0.2, "train.eval_every": 20, "train.eval_pairs": 2}
LONG = DOUBLE | FULL | HELD_OUT | {"train.steps": 20, "train.batch": 1, "train.accumulate": 3}
"""9 pairs to learn from, three updates of three pairs in an epoch: seven epochs, and the two draws in turn."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("kept"))


@pytest.fixture(autouse=True)
def another_accelerator():
    """Runs of one process may differ in precision."""
    yield
    forget_accelerator()


@pytest.fixture(scope="module")
def asked():
    """Every batch that a reference was asked about to keep its errors: row numbers and draw."""
    seen, ask = [], KeptErrors._ask

    def note(self, learner, rows, draw):
        seen.append((rows.tolist(), draw))
        return ask(self, learner, rows, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptErrors, "_ask", note)
        yield seen


@pytest.fixture(scope="module")
def run(world, asked):
    yield world.train("run", LONG | DRAWS)
    forget_accelerator()


def prepare(world, changes, family="sd15"):
    """What `train` prepares: plan, loader, held-out pairs, and the learner with kept errors."""
    from diffpo.config.run import build
    from diffpo.training.processes import make_accelerator
    from diffpo.training.reference import find_kept, is_asked, keep
    from diffpo.training.train import prepare_data, prepare_learner

    config = build(world.tree("prepared", changes, family))
    accelerator = make_accelerator(config)
    plan, loader, held_out, _ = prepare_data(config, accelerator)
    kept = find_kept(config, loader, held_out)
    needed = is_asked(config, accelerator, kept)
    learner = prepare_learner(config, accelerator, needed)
    keep(learner, kept)
    return plan, loader, held_out, learner, needed


def test_the_reference_is_asked_once_about_every_draw(run, asked):
    """Of 9 pairs two draws, and of the held-out pairs that are judged the first one: alone, as a micro-batch has it."""
    assert sorted(draw for _, draw in asked) == [0] * (9 + 2) + [1] * 9
    assert all(len(rows) == 1 for rows, _ in asked)


def test_every_call_of_the_reference_is_seen_in_the_progress(world, monkeypatch, capsys):
    """However many draws a pair has: 9 pairs five times, one pair per call."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    prepare(world, LONG | HELD_OUT | {"data.reference_draws": 5, "train.seed": 9})
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Asking the reference: ")]
    assert [line.split(",")[0].split(": ")[1] for line in told[:45]] == [f"{done} of 45" for done in range(1, 46)]


def test_twenty_updates_are_those_of_a_live_reference_on_the_same_draws(world, run):
    """Losses, all else that is logged, held-out losses and weights: equal, in double precision."""
    from diffpo.training.learner import prepare_learner
    from diffpo.training.update import evaluate, update

    plan, loader, held_out, learner, _ = prepare(world, LONG | DRAWS)
    loader.reference_errors = held_out.reference_errors = None
    live = prepare_learner(learner.config, learner.accelerator)
    assert live.reference is not None and learner.reference is None
    told = [
        update(live, batches, plan.position(done)[0], micro_seed=done)
        for done, batches in enumerate(loader.updates(plan, 0, 20))
    ]
    told[-1] |= evaluate(live, held_out)
    lines = metrics(run)
    assert [{key: line[key] for key in expected} for line, expected in zip(lines, told, strict=True)] == told
    assert lines[-1]["epoch"] == 6 and "eval/error/reference_chosen" in told[-1]
    learned = {name: p.detach() for name, p in live.policy.network.named_parameters()}
    assert difference(weights(run), learned) == 0
    assert len({line["error/reference_chosen"] for line in lines}) > 15, "another order in every epoch"


def test_the_first_epochs_are_those_of_fresh_draws(world, run):
    """As many as there are draws: nothing else in the run has changed, such as the order of the pairs."""
    fresh = metrics(world.train("fresh", LONG | {"train.steps": 6, "train.eval_every": 0}))
    assert metrics(run)[:6] == fresh
    assert metrics(run)[6]["epoch"] == 2


def test_a_run_that_goes_on_learns_the_same(world, run, asked):
    """It finds all errors, and asks no reference."""
    before = len(asked)
    world.train("stopped", LONG | DRAWS | {"train.steps": 8, "train.eval_every": 0})
    stopped = world.train("stopped", LONG | DRAWS)
    assert difference(weights(stopped), weights(run)) == 0
    assert metrics(stopped) == metrics(run)
    assert len(asked) == before


def bytes_held() -> int:
    """Of all tensors of this process, each storage once."""
    gc.collect()
    storages = [x.untyped_storage() for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_no_second_network_is_held(world, run):
    """Nor loaded, where all errors are there; nor kept after they were made."""
    nothing = bytes_held()
    _, _, _, live, asked_live = prepare(world, LONG)
    network = sum(x.nbytes for x in [*live.policy.network.parameters(), *live.policy.network.buffers()])
    assert asked_live and bytes_held() - nothing == pytest.approx(2 * network, rel=0.02)
    del live
    for changes, needed in ((LONG | DRAWS, False), (LONG | DRAWS | {"train.seed": 1}, True)):
        *_, learner, asked = prepare(world, changes)
        assert (asked, learner.reference) == (needed, None)
        assert bytes_held() - nothing == pytest.approx(network, rel=0.02)
        del learner


ALONE = {"train.steps": 2, "train.batch": 4}


@pytest.mark.parametrize(
    "more",
    [
        {"method.noise": "independent", "train.split_forward": True, "data.flip": True},
        {"method.name": "kto", "method.guard": 0.5, "train.mixed_precision": "bf16"},
        {"method.name": "inpo", "method.inversion": {"steps": 2, "invert_with": "reference", "cache": True}},
    ],
    ids=["noise", "bf16", "inversion"],
)
def test_a_lora_learns_the_same(world, more):
    """However noise is added, in full batches: bit for bit."""
    live, kept = (world.train(f"alone-{k}", ALONE | more | k, fresh=True) for k in ({}, DRAWS))
    assert metrics(kept) == metrics(live)
    assert difference(weights(kept), weights(live)) == 0


def kept_of(world, changes) -> list[KeptErrors]:
    """What is kept of a configuration's splits, without a network."""
    from diffpo.config.run import build
    from diffpo.training.processes import make_accelerator
    from diffpo.training.reference import find_kept
    from diffpo.training.train import prepare_data

    forget_accelerator()
    config = build(world.tree("stores", ALONE | DRAWS | changes))
    _, loader, held_out, _ = prepare_data(config, make_accelerator(config))
    return find_kept(config, loader, held_out)


def stores(world, changes) -> list[str]:
    """Names of the stores of a configuration."""
    return [each.store.folder.name for each in kept_of(world, changes)]


def test_a_row_has_errors_of_its_own(world):
    """Of its draws, of its images and of its captions: a row of the same content elsewhere has other draws."""
    pairs = world.folder / "pairs"
    rows = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()][:4]
    others = {"caption": [{"prompt": "another"}], "images": [{"chosen": rows[0]["rejected"]}]}
    keys = {}
    for name, changes in (others | {"same": [{}, rows[0]]}).items():
        table = [row | change for row, change in zip(rows, [*changes, {}, {}, {}], strict=False)]
        (pairs / f"{name}.jsonl").write_text("\n".join(map(json.dumps, table)))
        (kept,) = kept_of(world, {"data.path": f"{name}.jsonl"})
        keys[name] = kept._keys.tolist()
    assert len(set(keys["same"])) == len(rows), "two of them are the same pair"
    for name in others:
        assert keys[name][0] != keys["same"][0] and keys[name][2:] == keys["same"][2:]


def test_what_changes_an_error_has_other_files(world, run):
    """And what does not, such as the objective and its strength, or what is trained, finds them."""
    same = [{}, {"method.beta": 50.0}, {"method.name": "ipo"}, {"model.rank": 2}, FULL, {"train.learning_rate": 1e-5}]
    others = [{"train.seed": 1}, {"data.reference_draws": 1}, {"data.caption_dropout": 0.3}, {"train.batch": 2}]
    others += [{"method.noise": "independent"}, {"model.time": {"low": 0.5}}, {"train.mixed_precision": "bf16"}]
    others += [{"train.dtype": "float64"}, {"data.resolution": 8}, {"data.cache_dtype": "float16"}]
    others += [{"model.denoiser": str(run)}, {"model.prediction": "v"}, {"model.attention": "xformers"}]
    others += [{"train.split_forward": True}, {"train.channels_last": True}, {"train.compile": "regional"}]
    (first,), *more = (stores(world, changes) for changes in same)
    assert all(names == [first] for names in more)
    assert len({name for changes in others for name in stores(world, changes)} | {first}) == 1 + len(others)
    train, judged = stores(world, HELD_OUT)
    assert train == first != judged, "captions of held-out pairs are not dropped"


def test_clips_keep_an_error_for_each_frame(tmp_path):
    """With labels of seconds that exchange the sides of some frames."""
    world = World.make(tmp_path, "wan", rows=2)
    lines = []
    for i, segments in enumerate([[1, -1], [0, 1], [0, 0], [-1, -1]]):
        row = {"prompt": f"clip {i}", "segments": segments}
        for side in ("chosen", "rejected"):
            row[side] = f"clip{i}-{side}.mp4"
            pixels = torch.randint(256, (17, 16, 16, 3), generator=torch.Generator().manual_seed(2 * i + len(side)))
            (world.folder / "pairs" / row[side]).write_bytes(video(list(pixels.to(torch.uint8).numpy())))
        lines.append(json.dumps(row))
    (world.folder / "pairs" / "clips.jsonl").write_text("\n".join(lines))
    dense = {"method.name": "densedpo", "data.path": "clips.jsonl", "data.fps": 8.0, "train.steps": 3, "train.batch": 2}
    live, kept = (world.train(f"dense-{k}", dense | k, "wan") for k in ({}, DRAWS))
    assert metrics(kept) == metrics(live)
    assert difference(weights(kept), weights(live)) == 0
    _, loader, _, _, _ = prepare(world, dense | DRAWS, "wan")
    assert loader.batch([0, 1], 1).reference_error.chosen.shape == (2, 5)


REFUSED = {
    "dspo": ({}, "its loss needs the reference's predictions"),
    "mapo": ({}, "this method has no reference"),
    "sft": ({}, "this method has no reference"),
    "inpo": ({}, "its images are inverted while it trains"),
    "smpo": ({"data.path": "labelled.jsonl"}, "its images are inverted while it trains"),
    "dpo": ({"method.inversion": {"invert_with": "reference"}}, "its images are inverted while it trains"),
}


@pytest.mark.parametrize("method", REFUSED)
def test_methods_that_must_ask_say_so(world, method):
    """Before anything is read; the others take kept errors."""
    more, reason = REFUSED[method]
    with pytest.raises(ConfigError, match=f"data.reference_draws: .* {reason}"):
        prepare(world, DRAWS | {"method.name": method} | more)


def test_all_other_methods_take_kept_errors():
    takes = {name for name, cls in METHODS.items() if cls().asks_reference_for is None}
    assert takes == METHODS.keys() - (REFUSED.keys() - {"dpo"})


def test_kept_errors_lie_beside_kept_encodings(world):
    with pytest.raises(ConfigError, match=r"data.reference_draws: .* need data\.cache=true"):
        prepare(world, DRAWS | {"data.cache": False})


def test_it_is_said_what_keeping_costs():
    """12 pairs, 4 in an update, each asked about twice: against 9 updates, and against 2."""
    from diffpo.config.run import build
    from diffpo.training.reference import describe_draws

    plan, tree = Schedule(0, (np.arange(12),), micro_batch=4), World(Path()).tree("said")
    long, short = (
        describe_draws(build(tree | {"train": tree["train"] | {"steps": steps}}), 2, plan, 12) for steps in (9, 2)
    )
    assert long == "2 for each pair: the reference is asked 24 times once, and not 36 times while training"
    assert "not 8 times while training; 0.667 epochs alone do not pay for that" in short
