"""MaPO by hand: two errors, no reference."""

from __future__ import annotations

import math

import pytest
from hand import answers, gradients, judge

from diffpo.core.inversion import Inversion
from diffpo.methods import METHODS

BOTH = answers(math.sqrt(2 * math.log(2)), math.sqrt(2 * math.log(3)))
"""Errors 2 log 2 and 2 log 3; with s = 1/2 their links are log 2 and log 3 / 2."""


def test_loss_by_hand():
    """scale 10: logit 10 (log 2 - log 3 / 2); weight 0.5: loss 2 log 2 + 0.5 log(1 + e^-logit)."""
    output = judge(METHODS["mapo"](weight=0.5, scale=10.0), BOTH, None)
    logit = 10 * (math.log(2) - math.log(3) / 2)
    assert output.loss.item() == pytest.approx(2 * math.log(2) + 0.5 * math.log1p(math.exp(-logit)), rel=1e-13)
    assert output.metrics["rewards/margins"].item() == pytest.approx(logit, rel=1e-13)
    assert output.metrics["rewards/chosen"].item() == pytest.approx(10 * math.log(2), rel=1e-13)
    assert not [name for name in output.metrics if "reference" in name]


def test_released_settings():
    """`beta_mapo` 0.1, `snr_value` 0.5, 1000 training times; the logit is close to 250 (M_r - M_c) for small errors."""
    method = METHODS["mapo"]()
    assert (method.weight, method.snr, method.scale) == (0.1, 0.5, 1000.0)
    logit = judge(method, answers(0.1, 0.2), None).metrics["rewards/margins"].item()
    assert logit == pytest.approx(250 * (0.04 - 0.01), rel=0.01)


def test_the_chosen_error_falls_by_itself_too():
    """Equal errors: the comparison pulls both apart, the denoising term the chosen one down."""
    by = gradients(METHODS["mapo"](), answers(1, 1), None)
    assert (by.chosen > -by.rejected).all() and (by.rejected < 0).all()


def test_a_reference_is_needed_only_to_invert():
    needs = {
        how: METHODS["mapo"](inversion=how and Inversion(invert_with=how)).needs_reference
        for how in (None, "policy", "reference")
    }
    assert needs == {None: False, "policy": False, "reference": True}
