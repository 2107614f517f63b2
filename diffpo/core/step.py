"""The algorithm box of the papers: what one micro-batch computes, whatever the method and the network.

And what of it can be computed beforehand: the points of inversions for several micro-batches, the reference's errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffpo.core.inversion import invert
from diffpo.core.method import Method
from diffpo.core.noising import Predictor
from diffpo.core.types import Condition, Denoised, Judged, Noised, Pair, PairBatch, Rng, StepOutput, moved_to


def preference_step(
    method: Method,
    policy: Predictor,
    reference: Predictor | None,
    batch: PairBatch,
    rng: Rng,
    *,
    split_forward: bool = False,
) -> StepOutput:
    """Draw a time, add noise, ask both networks, and let the method judge.

    Args:
        method: Says how noise is added and how errors become a loss.
        policy: The network in training.
        reference: The frozen one; None exactly if the method needs none, or the batch has its errors.
        batch: Clean latents `[b c f h w]` and conditions of both sides.
        rng: The draws of these rows.
        split_forward: One forward per side instead of one over both, for models of which only one row fits.

    Returns:
        Loss `[b]` (with graph), times the rows' weights where they have any, and metrics without weights, among them
        `time`, the relative time of each row.
    """
    t = policy.process.sample_time(rng, batch.shape)
    noised = method.add_noise(policy, reference, batch, t, rng)
    judged = None
    if batch.reference_error is not None:
        judged = batch.reference_error.map(Judged)
    elif reference is not None:  # before the policy, so that no graph is alive while adapters are switched
        with torch.no_grad():
            judged = denoise(reference, noised, batch.cond, split_forward)
    output = method.loss(denoise(policy, noised, batch.cond, split_forward), judged, batch)
    loss = output.loss if batch.weight is None else output.loss * moved_to(batch.weight, output.loss)
    return StepOutput(loss, output.metrics | {"time": policy.process.relative(t)})


def invert_together(
    method: Method,
    policy: Predictor,
    reference: Predictor | None,
    batches: Sequence[PairBatch],
    seed: int,
    epoch: int,
    *,
    most: int | None = None,
    least: int = 0,
) -> list[PairBatch]:
    """Put into micro-batches the points that `preference_step` would invert their images to.

    Those of one shape are inverted together, each row with the time and the draws that it has in its own micro-batch.

    Args:
        method: Says how images are inverted (`Method.live_inversion`).
        policy: The network in training, which does not change meanwhile.
        reference: The frozen one.
        batches: On the networks' device.
        seed: With `epoch` and the rows' numbers, what the draws depend on.
        epoch: See `seed`.
        most: Images in a call of the network at most; see `invert`.
        least: Images in a call at least.
    """
    inversion, found = method.live_inversion, list(batches)
    assert inversion is not None, "the loop asks whether the method inverts while training"
    walker = inversion.choose(policy, reference)
    for shape in dict.fromkeys(batch.shape for batch in batches):
        places = [i for i, batch in enumerate(batches) if batch.shape == shape]
        alike = [batches[i] for i in places]
        rng = Rng(seed, epoch, torch.cat([batch.index for batch in alike]))
        latent = Pair(*(torch.cat(side) for side in zip(*(batch.latent for batch in alike), strict=True)))
        cond = Condition.cat_pairs([batch.cond for batch in alike])
        t = policy.process.sample_time(rng, shape)
        noised = invert(walker, latent, cond, t, rng, inversion, most=most, least=least)
        sizes = [batch.size for batch in alike]
        for i, *points in zip(places, *(side.z.split(sizes) for side in noised), strict=True):
            found[i] = replace(batches[i], inverted=Pair(*points))
    return found


@torch.no_grad()
def reference_errors(
    method: Method, reference: Predictor, batch: PairBatch, rng: Rng, *, split_forward: bool = False
) -> Pair[Tensor]:
    """Say what `preference_step`, with the same arguments, would find to be the reference's errors: `[b f]` each.

    The method must not ask the policy for its noise (`Method.asks_reference_for`).
    """
    t = reference.process.sample_time(rng, batch.shape)
    noised = method.add_noise(reference, reference, batch, t, rng)
    return denoise(reference, noised, batch.cond, split_forward).map(lambda answer: answer.error)


def denoise(
    denoiser: Predictor, noised: Pair[Noised], cond: Pair[Condition], split_forward: bool = False
) -> Pair[Denoised]:
    """Ask a network about both sides at once, or about one after the other; a side that is None stays None."""
    sides = [(n, c) for n, c in zip(noised, cond, strict=True) if n is not None]
    if split_forward:
        predictions = [denoiser.predict(n.z, n.t, c) for n, c in sides]
    else:
        z, t = torch.cat([n.z for n, _ in sides]), torch.cat([n.t for n, _ in sides])
        predictions = list(denoiser.predict(z, t, Condition.cat([c for _, c in sides])).chunk(len(sides)))
    return noised.map(lambda n: Denoised(predictions.pop(0), n))
