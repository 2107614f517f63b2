"""Labels of segments on their way to a batch: what rows must have, and what becomes of clips of two lengths."""

from functools import partial

import numpy as np
import pytest

from diffpo.core.segments import causal_frames
from diffpo.data import Pairs, load_splits
from diffpo.data.segments import SegmentLabels
from diffpo.errors import UserError
from diffpo.media.footage import FrameRule


@pytest.fixture
def labels(records, jsonl):
    def make(segments, lengths, most=None, columns=None, **more):
        source = Pairs(path=jsonl(records(len(segments), segments=segments.__getitem__, **(columns or {}))), **more)
        held = partial(causal_frames, factor=4)
        return SegmentLabels(load_splits(source).train, np.array(lengths), source, FrameRule(4, most), held, 8.0)

    return make


SEGMENTS = [[1, -1], [0, 1], [-1], [1, 1, -1]]


def test_latent_frames_get_the_labels_of_their_seconds(labels):
    """Clips of 17 frames at 8 per second: 5 latent frames, of which 0 to 1 lie in the first second, 3 and 4 in the
    second one; latent frame 2 holds pixel frames 5 to 8, of which the last belongs to the second second."""
    found = labels(SEGMENTS, [17, 17, 1, 25])
    assert found.rows([1, 0]).tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, -1, -1]]
    assert found.rows([2]).tolist() == [[-1]] and found.rows([3]).tolist() == [[1, 1, 1, 1, 1, -1, -1]]


def test_the_settings_of_a_source_arrive(labels):
    last = labels(SEGMENTS, [17, 17, 1, 25], segment_rule="last")
    assert last.rows([0]).tolist() == [[1, 1, -1, -1, -1]]
    unanimous = labels(SEGMENTS, [17, 17, 1, 25], segment_rule="unanimous")
    assert unanimous.rows([0]).tolist() == [[1, 1, 0, -1, -1]]
    short = labels([[1, -1]], [9], segment_seconds=0.5)
    assert short.rows([0]).tolist() == [[1, 1, -1]]


def test_a_number_of_labels_that_does_not_fit_is_named(labels):
    """All wrong rows at once, by their number in the table; a row that is dropped anyway may hold anything."""
    with pytest.raises(UserError) as caught:
        labels(SEGMENTS, [17, 33, 1, 9])
    told = str(caught.value)
    assert "2 rows have another number: row 1 has 2 for 33 frames at 8 per second, which is 4 to 5; row 3 has 3" in told
    assert "data.segment_seconds" in told
    labels(SEGMENTS, [17, 17, 1, 0])
    with pytest.raises(UserError, match=r"row 0 has 2 for an image, which is 1"):
        labels([[1, 1]], [1])


def test_many_wrong_rows_are_counted(labels):
    with pytest.raises(UserError, match=r"12 rows have another number: .*row 7 has 1 .*; and 4 more\. Are"):
        labels([[1]] * 12, [17] * 12)


def test_what_makes_no_length_that_the_model_takes_may_have_a_label(labels):
    """At 8 frames per second, 17 frames are 2 segments; 3 more, which the model does not take, begin a third one."""
    assert labels([[1, 1, -1]], [17]).rows([0]).tolist() == [[1, 1, 1, 1, 1]]
    with pytest.raises(UserError, match="row 0 has 4 for 17 frames at 8 per second, which is 2 to 3"):
        labels([[1, -1, 1, 1]], [17])


@pytest.mark.parametrize("cut", [{"frames": 17}, {"unequal": "trim"}, {"most": 17}], ids=lambda cut: next(iter(cut)))
def test_clips_that_are_cut_have_labels_for_what_is_left_out(labels, cut):
    assert labels([[1, -1, 1, 1]], [17], **cut).rows([0]).tolist() == [[1, 1, 1, -1, -1]]
    with pytest.raises(UserError, match="row 0 has 1 for 17 frames at 8 per second, which is at least 2"):
        labels([[1]], [17], **cut)


def test_ties_as_a_whole_are_not_left_out_in_silence(labels, caplog):
    columns = {"preference": [0.5, 1.0].__getitem__}
    assert labels([[1, -1], [1, 1]], [17], columns=columns).rows([0]).tolist() == [[1] * 5]
    assert "1 pairs that are ties as a whole were left out" in caplog.text and "data.ties=keep" in caplog.text
    caplog.clear()
    assert labels([[1, -1], [1, 1]], [17, 17], columns=columns, ties="keep").rows([0]).tolist() == [[1, 1, 1, -1, -1]]
    assert not caplog.records
