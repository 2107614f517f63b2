"""Synthetic users: everybody's pairs are in the order of their own scorer."""

import pytest
import torch

from diffpo.curate.scorer_users import label_by_scorers
from diffpo.data import Pairs, load_splits
from diffpo.errors import UserError
from diffpo.media.frames import decode
from diffpo.scorers.base import ImageScorer


class Channel:
    """The mean of one colour channel."""

    frames, judge = None, ImageScorer.judge

    def __init__(self, channel: int):
        self.name, self.channel = ("red", "green", "blue")[channel], channel
        self.provenance = {"scorer": self.name}

    def score(self, images, prompts):
        return torch.tensor([sum(i.getchannel(self.channel).tobytes()) / (i.width * i.height) for i in images])


def test_everybody_prefers_what_their_scorer_gives_more(records, jsonl, tmp_path):
    source = Pairs(path=jsonl(records(9, user_id=lambda i: "somebody", chosen_seed=lambda i: i)))
    mixture = {"red": 0.25, "blue": 0.75}
    names = label_by_scorers(source, [Channel(0), Channel(2)], [mixture], tmp_path / "out")
    assert names == ["red", "blue", "0.25 red+0.75 blue"]
    table = load_splits(Pairs(path=str(tmp_path / "out"))).train
    assert len(table) == 27 and sorted(set(table.column("user_id"))) == sorted(names)
    scores = {}
    for channel in (0, 2):
        judge = Channel(channel)
        all_images = [decode(table.cell(row, side)) for row in range(9) for side in ("chosen", "rejected")]
        values = judge.score(all_images, [])
        scores[judge.name] = (values.mean(), values.std(correction=0))
    for row in range(27):
        shares = {"red": {"red": 1.0}, "blue": {"blue": 1.0}}.get(table.cell(row, "user_id"), mixture)
        images = [decode(table.cell(row, side)) for side in ("chosen", "rejected")]
        better, worse = (
            sum(
                s * float((Channel(("red", "green", "blue").index(n)).score([i], [])[0] - scores[n][0]) / scores[n][1])
                for n, s in shares.items()
            )
            for i in images
        )
        assert better > worse
    assert "rejected_seed" in table.rows.column_names or "chosen_seed" in table.rows.column_names


@pytest.mark.parametrize(
    ("scorers", "mixtures", "message"),
    [
        ([0], [], "at least two"),
        ([0, 0], [], "of different scorers"),
        ([0, 1], [{"blue": 1.0}], "a mixture names blue, but --by-scorer gives red, green"),
    ],
)
def test_who_is_no_user_is_said(records, jsonl, tmp_path, scorers, mixtures, message):
    with pytest.raises(UserError, match=message):
        label_by_scorers(Pairs(path=jsonl(records(3))), list(map(Channel, scorers)), mixtures, tmp_path / "out")
