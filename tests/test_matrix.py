"""Every method on every family, full and LoRA, with dual captions and soft labels: two updates, finite, and the right
weights changed. A user adapter with every method on one family, and with PPD on every family that has one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from runs import World, metrics
from tiny import CLIPS, PIPELINES
from tiny_steps import FACTS, TOLD, draws, is_unheard, make, moved, near, pair_batch, with_users

from diffpo.core.step import preference_step
from diffpo.core.types import Pair
from diffpo.errors import UserError
from diffpo.methods import METHODS
from diffpo.models import FAMILIES
from diffpo.models.bases import find_base
from diffpo.models.tunings import MODELS

SOFT = torch.tensor([1.0, 0.7, 0.2])
"""The third pair's label disagrees with its order."""

CASES = [
    *product(METHODS, PIPELINES, ("full", "lora")),
    *product(METHODS, TOLD[:1], ["user"]),
    *product(["ppd"], TOLD[1:], ["user"]),
]


def test_the_count():
    """Every method, on every family and parametrisation, full and LoRA; nothing is excluded."""
    assert len(CASES) == len(METHODS) * (2 * len(PIPELINES) + 1) + len(TOLD) - 1
    assert {"sd15", "sd2", "sdxl", "sd3", "flux", "pixart", "pixart-alpha", "wan", "wan-5b"} <= set(TOLD)
    assert {"dpo", "sft", "inpo", "smpo", "dcpo", "mapo", "kto"} <= set(METHODS) and len(METHODS) >= 14
    assert PIPELINES.keys() == FACTS.keys() and len(PIPELINES) >= 7
    assert set(MODELS) == {"full", "lora", "user"}


def test_every_family_and_parametrisation_is_there(pipelines):
    bases = {name: find_base(str(pipelines(name))) for name in PIPELINES}
    assert {base.family for base in bases.values()} == set(FAMILIES.values())
    assert {make(pipelines(name), "full")[0].process.prediction for name in bases} == {"eps", "v", "flow"}


@pytest.mark.parametrize(("method", "name", "tuning"), CASES)
def test_two_updates(pipelines, method, name, tuning):
    chosen = METHODS[method]()
    policy, reference = make(pipelines(name), tuning)
    if not chosen.needs_reference:
        reference = None
    trained = {key: p for key, p in policy.network.named_parameters() if p.requires_grad}
    before = {key: value.clone() for key, value in policy.network.state_dict().items()}
    frozen = reference and {k: v.clone() for k, v in reference.denoiser.network.state_dict().items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-4, weight_decay=0.0, eps=1e-15)  # IPO's gradients are small
    losses = []
    for epoch in range(2):
        batch = replace(pair_batch(name, [0, 1, 2]), preference=SOFT)
        batch = with_users(batch) if tuning == "user" else batch
        assert not torch.equal(batch.cond.chosen.text, batch.cond.rejected.text)
        output = preference_step(chosen, policy, reference, batch, draws(batch, epoch=epoch))
        (output.loss.sum() / chosen.count(batch).sum()).backward()
        assert output.loss.shape == (3,) and output.loss.isfinite().all()
        assert all(v.shape == (3,) and v.isfinite().all() for v in output.metrics.values())
        assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.detach())
    assert not torch.equal(*losses)
    after = policy.network.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    heard = {key for key in trained if not is_unheard(name, key)}
    assert changed == heard, "what is trained changed, all of it, and nothing else"
    if frozen and tuning == "full":
        assert all(torch.equal(v, frozen[k]) for k, v in reference.denoiser.network.state_dict().items())


@pytest.mark.parametrize(("name", "dense"), list(product(CLIPS, ("frame", "segment", "joint"))))
def test_labels_of_frames(pipelines, name, dense):
    """Every method that judges two sides learns from clips whose frames have labels; a pair of ties has no term."""
    policy, reference = make(pipelines(name), "full")
    batch = pair_batch(name, [0, 1, 2])
    frames = batch.shape[1]
    labels = torch.tensor([[1, -1, -1, 0, 1, -1, 0, 1], [0] * 8, [1] * 8])[:, :frames]
    batch = replace(batch, segments=labels)
    terms = {"frame": [int(labels[0].ne(0).sum()), 0, frames], "joint": [1, 0, 1], "segment": [2, 0, 1]}[dense]
    for kind in METHODS.values():
        if "dense" in kind.__dataclass_fields__:
            method = kind(dense=dense)
            loss = preference_step(method, policy, reference, batch, draws(batch)).loss
            assert loss.isfinite().all() and loss[1] == 0 and loss[0] > 0
            assert method.count(batch).tolist() == terms
            loss.sum().backward()
    learned = [p.grad for p in policy.network.parameters() if p.requires_grad]
    assert all(grad is not None and grad.isfinite().all() for grad in learned)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_rejected_caption_alone_changes_the_loss(pipelines, name):
    """Of DCPO, with random noise and with an inversion, which is told the caption too."""
    models, batch = moved(pipelines(name)), pair_batch(name, [0, 1], torch.float64)
    other = pair_batch(name, [7, 8], torch.float64).cond.rejected
    recaptioned = replace(batch, cond=Pair(batch.cond.chosen, replace(batch.cond.rejected, text=other.text)))
    for method in (METHODS["dcpo"](beta=50.0), METHODS["dcpo"](beta=50.0, inversion=METHODS["inpo"]().inversion)):
        before, after = (preference_step(method, *models, x, draws(x)) for x in (batch, recaptioned))
        assert not torch.isclose(after.loss, before.loss, rtol=1e-7).any()
        torch.testing.assert_close(
            after.metrics["error/chosen"], before.metrics["error/chosen"], **near(name, 1e-9, 0.0)
        )


def test_a_label_against_the_order_is_for_methods_that_read_it(tmp_path):
    """Soft labels of 0.2 and 0.8: SFT would learn images that lost, and refuses; the others know what they mean."""
    world = World.make(tmp_path)
    labelled = {"data.path": "labelled.jsonl", "train.steps": 1}
    assert {name for name, method in METHODS.items() if not method.uses_preference} == {"sft"}
    with pytest.raises(UserError, match=r"6 rows of .* have a preference below 0\.5.* sft does not read the column"):
        world.train("sft", labelled | {"method.name": "sft"})
    (line,) = metrics(world.train("kto", labelled | {"method.name": "kto"}))
    assert line["loss"] == pytest.approx(0.5)
