"""Signs that a run goes wrong, each said once."""

from __future__ import annotations

import pytest

from diffpo.training.alerts import WINDOW, Alerts, rounding_of


def said(curve):
    """Feed metrics, and collect what is said with the update at which it is."""
    alerts = Alerts()
    return [(step, text.split(":")[0]) for step, metrics in enumerate(curve, 1) for text in alerts.look(step, metrics)]


def metrics(accuracy=0.6, margin=0.1, chosen=1.0, reference=1.0):
    return {
        "rewards/accuracies": accuracy,
        "rewards/margins": margin,
        "error/chosen": chosen,
        "error/reference_chosen": reference,
    }


def test_an_accuracy_near_one_at_once_is_said_once():
    ((step, text),) = said([metrics(accuracy=1.0)] * 300)
    assert step == WINDOW and text == "the accuracy is 1.00 on average after only 25 updates"


def test_an_accuracy_near_one_after_long_training_is_none():
    assert not said([metrics(accuracy=0.6)] * 100 + [metrics(accuracy=1.0)] * 100)


def test_a_chosen_error_that_rises_while_the_margin_grows_is_said_once():
    curve = [metrics(margin=0.01 * step, chosen=1 + 0.002 * step) for step in range(200)]
    ((step, text),) = said(curve)
    assert text.startswith("the margin grows while the error on the chosen images rises")
    assert step == 2 * WINDOW


def test_neither_alone_is_an_alert():
    assert not said([metrics(margin=0.01 * step) for step in range(200)])  # the chosen error stays
    assert not said([metrics(margin=0.3, chosen=1 + 0.002 * step) for step in range(200)])  # the margin stays
    assert not said([metrics(margin=-0.01 * step, chosen=1 + 0.002 * step) for step in range(200)])


def test_a_method_without_rewards_gets_none():
    assert not said([{"loss": 1.0, "error/chosen": 1.0 + step} for step in range(200)])


def test_rounding_that_swamps_the_logit_is_said_once():
    """By hand: 0.011 x 5000 / sqrt(4 x 8 x 8) = 3.4; at 64 x 64, 0.43; float32 rounds 5,000 times less."""
    assert rounding_of("bf16", 5000.0, 256) == pytest.approx(0.011 * 5000 / 16)
    alerts = Alerts()
    (note,) = alerts.begin("bf16", 5000.0, 256)
    assert "moves the logit u by about 3.4" in note and "256 numbers" in note
    assert not [*alerts.begin("bf16", 5000.0, 256)]
    assert not [*Alerts().begin("bf16", 5000.0, 4 * 64 * 64)] and not [*Alerts().begin("no", 5000.0, 256)]
