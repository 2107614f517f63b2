"""The study of the moving world: its wrong labels, and the updates after which variants have drifted equally far."""

import json
from pathlib import Path

import numpy as np
import pytest
import study_moving as study
import torch


def test_wrong_labels_are_as_wrong_as_they_are_called():
    labels = torch.randint(-1, 2, (1000, 4), generator=torch.Generator().manual_seed(1)).tolist()
    made = {name: np.array(own) for name, own in study.wrong_labels(labels).items()}
    right = made[study.THIRD]
    assert right.tolist() == labels
    for name, share in study.FLIPPED.items():
        assert np.array_equal(made[name] == 0, right == 0), "a tie stays a tie"
        assert np.mean(made[name][right != 0] == -right[right != 0]) == pytest.approx(share, abs=0.03)
    shuffled = made[study.SHUFFLED]
    assert sorted(shuffled.tolist()) == sorted(labels)
    assert np.mean(shuffled[right != 0] == right[right != 0]) == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize(("errors", "wanted"), [((0.40, 0.42, 0.43, 0.46), 30), ((0.43, 0.50, 0.60, 0.70), 10)])
def test_a_variant_gets_the_updates_after_which_it_has_drifted_as_far_as_the_others(tmp_path, errors, wanted):
    variant = study.VARIANTS[0]
    folder = Path(study.drifts(tmp_path)[0].folder)
    folder.mkdir(parents=True)
    curve = {10 * (i + 1): {"error/chosen": e, "error/reference_chosen": 0.4} for i, e in enumerate(errors)}
    (folder / "result.json").write_text(json.dumps({"curve": curve}))
    assert study.updates(tmp_path, variant) == wanted
    assert [job.updates for job in study.finals(tmp_path, variant)] == [wanted] * 3
    assert study.finished(tmp_path, variant) == study.finished(tmp_path, study.VARIANTS[1]) == []
