"""Which rows of a table are used, in which order, and how they are divided into splits."""

import json
import os

import datasets
import pytest

from diffpo.data import HPDv3, Pairs, PickAPic, check_requires, load_splits
from diffpo.data.contents import identify
from diffpo.data.splits import normalise
from diffpo.errors import ConfigError, UserError
from diffpo.media.frames import decode
from diffpo.methods import DCPO, PPD, RPO, DenseDPO, SmPO

LABELS = [1.0, 0.0, 0.5, None, 1.0, 0.0]


@pytest.fixture
def pickapic(tmp_path):
    """A table in Pick-a-Pic's columns; cells are not images here, for nothing may decode them."""

    def save(**columns) -> str:
        n = len(LABELS)
        table = {
            "jpg_0": [b"zero%d" % i for i in range(n)],
            "jpg_1": [b"one%d" % i for i in range(n)],
            "label_0": LABELS,
            "label_1": [None if label is None else 1 - label for label in LABELS],
            "has_label": [True] * 5 + [False],
            "caption": [f"caption {i}" for i in range(n)],
            "user_id": list(range(n)),
            "ranking_id": list(range(n)),
        }
        path = tmp_path / "train.parquet"
        datasets.Dataset.from_dict(table | columns).to_parquet(path)
        return str(path)

    return save


def test_pickapic_puts_the_preferred_image_first(pickapic):
    table = load_splits(PickAPic(path=pickapic(seed_0=list("abcdef"), seed_1=list("ABCDEF")))).train
    assert table.rows[:] == {
        "prompt": ["caption 0", "caption 1", "caption 4"],
        "chosen": [b"zero0", b"one1", b"zero4"],
        "rejected": [b"one0", b"zero1", b"one4"],
        "user_id": [0, 1, 4],
        "chosen_seed": ["a", "B", "e"],
        "rejected_seed": ["A", "b", "E"],
    }
    assert table.origin.tolist() == [0, 1, 4]
    assert (table.counts.rows, table.counts.ties, table.counts.unlabelled) == (6, 1, 2)


def test_pickapic_keeps_ties_with_preference_one_half(pickapic):
    table = load_splits(PickAPic(path=pickapic(), ties="keep")).train
    assert table.column("preference") == [1.0, 1.0, 0.5, 1.0]
    assert table.column("chosen") == [b"zero0", b"one1", b"zero2", b"zero4"]
    assert table.counts.ties == 1


def test_captions_of_pick_double_caption_follow_their_image(pickapic):
    table = load_splits(PickAPic(path=pickapic(caption_0=list("abcdef"), caption_1=list("ABCDEF")))).train
    assert table.captions("chosen").to_pylist() == ["a", "B", "e"]
    assert table.captions("rejected").to_pylist() == ["A", "b", "E"]


def test_pickapic_without_a_caption_or_with_a_soft_label(pickapic):
    table = load_splits(PickAPic(path=pickapic(caption=[None, *"bcdef"]))).train
    assert table.column("prompt") == ["b", "e"]
    assert table.counts.promptless == 1
    with pytest.raises(UserError, match=r"label_0 is 0.3 in row 1.*allowed are 1 .*preference"):
        load_splits(PickAPic(path=pickapic(label_0=[1, 0.3, 0, 0, 0, 0])))


def test_pairs_take_a_preference_of_one_half_for_a_tie(records, jsonl):
    path = jsonl(records(3, preference=[0.9, 0.5, 0.2].__getitem__))
    assert load_splits(Pairs(path=path)).train.column("preference") == [0.9, 0.2]
    assert load_splits(Pairs(path=path, ties="keep")).train.column("preference") == [0.9, 0.5, 0.2]


@pytest.mark.parametrize("wrong", [1.5, -0.1])
def test_a_preference_outside_its_range_is_refused(wrong, records, jsonl):
    path = jsonl(records(3, preference=[0.9, wrong, 0.2].__getitem__))
    with pytest.raises(UserError, match=r"number from 0 to 1; 1 rows say something else .*in row 1"):
        load_splits(Pairs(path=path))


@pytest.mark.parametrize("wrong", [-0.1, None, "1", float("nan"), float("inf")])
def test_a_weight_is_a_number_that_is_not_negative(wrong, records, jsonl):
    path = jsonl(records(3, weight=[1.0, wrong, 0][:].__getitem__ if wrong != "1" else lambda i: "1"))
    with pytest.raises(UserError, match=r"`weight` is what a pair's loss is multiplied with.*in row"):
        load_splits(Pairs(path=path))


@pytest.mark.parametrize("wrong", [[2], 1.0, [[1]]])
def test_segments_are_lists_of_signs(wrong, records, jsonl):
    path = jsonl(
        records(2, segments=[[1], wrong].__getitem__)
        if not isinstance(wrong, float)
        else records(2, segments=lambda i: wrong)
    )
    with pytest.raises(UserError, match="`segments`"):
        load_splits(Pairs(path=path))


def test_unknown_columns_are_left_out_and_known_ones_kept(records, jsonl):
    path = jsonl(records(2, rejected_prompt=lambda i: ["own", None][i], colour=str, user_id=str))
    table = load_splits(Pairs(path=path)).train
    assert table.rows.column_names == ["prompt", "chosen", "rejected", "rejected_prompt", "user_id"]
    assert table.captions("rejected").to_pylist() == ["own", "a shape number 1"]
    assert table.captions("chosen").to_pylist() == table.column("prompt")


def test_what_was_dropped_is_logged(pickapic, caplog):
    with caplog.at_level("INFO", "diffpo.data"):
        load_splits(PickAPic(path=pickapic()))
    assert "6 rows, of which 1 are ties, 2 have no label and 0 have no prompt; 3 pairs are used" in caplog.text


def test_limit_counts_usable_pairs(pickapic):
    assert load_splits(PickAPic(path=pickapic(), limit=2)).train.origin.tolist() == [0, 1]


def test_no_prompt_stands_in_two_splits_of_a_fraction(records, jsonl):
    rows = [row | {"prompt": f"{'A  b' if i % 2 else 'a B'} {i // 4}"} for i, row in enumerate(records(80))]
    splits = load_splits(Pairs(path=jsonl(rows), validation_fraction=0.3))
    train, held_out = ({normalise(p) for p in table.column("prompt")} for table in (splits.train, splits.validation))
    assert not train & held_out
    assert len(train) + len(held_out) == 20
    assert len(splits.train) + len(splits.validation) == 80
    assert 0 < len(held_out) < 13
    assert identify(splits.train) != identify(splits.validation)


def test_the_fraction_chooses_a_prompt_wherever_it_stands(records, jsonl):
    rows = records(60)
    for i, row in enumerate(rows):
        row["prompt"] = f"prompt {i}"
    first = load_splits(Pairs(path=jsonl(rows), validation_fraction=0.5)).validation.column("prompt")
    second = load_splits(Pairs(path=jsonl(rows[::-1]), validation_fraction=0.5)).validation.column("prompt")
    assert sorted(first) == sorted(second)


def test_a_shared_prompt_is_refused_whatever_its_spelling(records, jsonl):
    rows = records(2)
    held_out = jsonl([rows[0] | {"prompt": " A SHAPE\tnumber \uff10 "}], "held_out.jsonl")
    with pytest.raises(UserError, match=r"1 prompts of .*held_out.jsonl.*'a shape number 0'.*validation_fraction"):
        load_splits(Pairs(path=jsonl(rows), validation_path=held_out))


def test_a_fraction_that_leaves_a_split_empty_is_refused(records, jsonl):
    with pytest.raises(UserError, match=r"leaves no validation pairs: .* has 3 different prompts"):
        load_splits(Pairs(path=jsonl(records(6)), validation_fraction=1e-6))


def test_a_table_of_ties_only_is_refused(records, jsonl):
    with pytest.raises(UserError, match=r"No row of .* can be used: 2 rows, of which 2 are ties"):
        load_splits(Pairs(path=jsonl(records(2, preference=lambda i: 0.5))))


@pytest.mark.parametrize(
    "values",
    [
        {"validation_fraction": 1.0},
        {"validation_fraction": 0.1, "validation_split": "test"},
        {"caption_dropout": -0.1},
        {"limit": 0},
        {"resolution": 0},
    ],
)
def test_values_out_of_range_are_config_errors(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        Pairs(path="x", **values)


def test_a_method_says_which_column_it_lacks(records, jsonl):
    table = load_splits(Pairs(path=jsonl(records(2)))).train
    check_requires(frozenset(), table, "dpo")
    with pytest.raises(UserError) as error:
        check_requires(frozenset({"preference"}), table, "smpo")
    assert str(error.value) == (
        "smpo needs a `preference` column; this table has prompt, chosen, rejected. "
        f"Run `diffpo data score {table.path} --scorer pickscore --out FOLDER`, or choose method=dpo."
    )
    with pytest.raises(UserError, match=r"ppd needs a `user_id` column.*Add `user_id` to the table, or choose"):
        check_requires(frozenset({"user_id"}), table, "ppd")
    with pytest.raises(UserError, match="dcpo needs the columns `chosen_prompt`, `rejected_prompt`"):
        check_requires(frozenset({"chosen_prompt", "rejected_prompt"}), table, "dcpo")


@pytest.mark.parametrize(
    ("method", "command"),
    [(RPO, "subject MODEL"), (DCPO, "caption "), (SmPO, "score "), (DenseDPO, "segments "), (PPD, None)],
)
def test_each_method_is_given_the_command_that_makes_its_columns(records, jsonl, method, command):
    """Also where some of them are there: other captions than those of `data subject` are of no use to RPO."""
    needed = method.requires
    for there in ({}, {"preference": 1.0}):
        rows = [row | there for row in records(2)]
        table = load_splits(Pairs(path=jsonl(rows))).train
        if needed <= set(table.rows.column_names):
            continue
        with pytest.raises(UserError) as error:
            check_requires(needed, table, "it")
        said = str(error.value).partition(". ")[2]
        assert said.startswith(f"Run `diffpo data {command}" if command else "Add `user_id` to the table")
        assert said.count("diffpo data") == bool(command) and "{" not in said


def test_the_shapes_world_is_a_table_like_any_other(pickapic, tmp_path, monkeypatch):
    from diffpo.worlds import assets

    monkeypatch.setattr(assets, "_PACKAGE", tmp_path / "package")
    source = PickAPic(path="shapes:pairs", validation_split="validation")
    with pytest.raises(UserError, match=r"shapes:pairs is not here: .*build_shapes.py"):
        load_splits(source)
    folder = tmp_path / "assets" / "shapes" / "pairs"
    folder.mkdir(parents=True)
    os.rename(pickapic(caption=[f"held out {i}" for i in range(6)]), folder / "validation.parquet")
    os.rename(pickapic(), folder / "train.parquet")
    splits = load_splits(source)
    assert splits.train.column("prompt") == ["caption 0", "caption 1", "caption 4"]
    assert splits.validation.column("prompt") == ["held out 0", "held out 1", "held out 4"]


def test_pick_double_caption_in_exactly_its_layout(tmp_path, picture):
    """The columns that its trainer reads; image 1 preferred, a tie, and a side without a caption of its own."""
    rows = [
        {"label_0": 1.0, "label_1": 0.0, "caption_0": "first of 0", "caption_1": "second of 0"},
        {"label_0": 0.0, "label_1": 1.0, "caption_0": "first of 1", "caption_1": "second of 1"},
        {"label_0": 0.5, "label_1": 0.5, "caption_0": "first of 2", "caption_1": "second of 2"},
        {"label_0": 0.0, "label_1": 1.0, "caption_0": "first of 3", "caption_1": None},
    ]
    for i, row in enumerate(rows):
        files = [picture(tmp_path / f"{i}_{side}.png", 24 + 2 * side, 20) for side in (0, 1)]
        row |= {f"jpg_{side}": file.read_bytes() for side, file in enumerate(files)} | {"caption": f"prompt {i}"}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(rows[:2]).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    datasets.Dataset.from_list(rows[2:]).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    table = load_splits(PickAPic(path=str(tmp_path))).train
    assert table.captions("chosen").to_pylist() == ["first of 0", "second of 1", "prompt 3"]
    assert table.captions("rejected").to_pylist() == ["second of 0", "first of 1", "first of 3"]
    assert table.column("prompt") == ["prompt 0", "prompt 1", "prompt 3"]
    assert [decode(cell).width for cell in table.column("chosen")] == [24, 26, 26]
    assert table.counts.ties == 1
    check_requires(frozenset({"chosen_prompt", "rejected_prompt"}), table, "dcpo")
    kept = load_splits(PickAPic(path=str(tmp_path), ties="keep")).train
    assert kept.column("preference") == [1.0, 1.0, 0.5, 1.0]
    assert kept.captions("chosen")[2].as_py() == "first of 2"


@pytest.fixture
def hpdv3(tmp_path, picture):
    """HPDv3's train.json beside its images/; path1 is the preferred image."""
    rows = [
        {"prompt": "a", "choice_dist": [12, 4], "confidence": 0.99, "model1": "flux", "model2": "kolors"},
        {"prompt": "b", "choice_dist": [5, 5], "confidence": 0.5, "model1": "flux", "model2": "infinity"},
        {"prompt": "c", "choice_dist": None, "confidence": None, "model1": "flux", "model2": "real_images"},
        {"prompt": "d", "choice_dist": [3, 9], "confidence": 0.7, "model1": "flux", "model2": "kolors"},
        {"prompt": None, "choice_dist": [9, 0], "confidence": 1.0, "model1": "flux", "model2": "kolors"},
    ]
    for i, row in enumerate(rows):
        for side in (1, 2):
            row[f"path{side}"] = f"images/{i}_{side}.jpg"
            picture(tmp_path / row[f"path{side}"])
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return tmp_path


def test_hpdv3_prefers_path1(hpdv3):
    table = load_splits(HPDv3(path=str(hpdv3 / "train.json"))).train
    assert table.rows[:] == {
        "prompt": ["a", "c", "d"],
        "chosen": [str(hpdv3 / f"images/{i}_1.jpg") for i in (0, 2, 3)],
        "rejected": [str(hpdv3 / f"images/{i}_2.jpg") for i in (0, 2, 3)],
    }
    assert (table.counts.rows, table.counts.ties, table.counts.promptless) == (5, 1, 1)


def test_hpdv3_shares_of_votes_become_preferences(hpdv3):
    path = str(hpdv3 / "train.json")
    assert load_splits(HPDv3(path=path, labels="soft")).train.column("preference") == [0.75, 1.0, 0.75]
    kept = load_splits(HPDv3(path=path, ties="keep")).train
    assert kept.column("preference") == [1.0, 0.5, 1.0, 1.0]
    assert kept.column("prompt") == ["a", "b", "c", "d"]


def test_hpdv3_leaves_out_what_is_not_sure(hpdv3):
    table = load_splits(HPDv3(path=str(hpdv3 / "train.json"), min_confidence=0.95)).train
    assert table.column("prompt") == ["a", "c"]
    assert (table.counts.unlabelled, table.counts.ties) == (2, 0)


def test_hpdv3_plus_plus_has_the_three_columns_alone(tmp_path, picture):
    rows = [{"prompt": "a", "path1": "images/q/6.jpg", "path2": "images/q/2.jpg"}]
    for name in ("6", "2"):
        picture(tmp_path / f"images/q/{name}.jpg")
    (tmp_path / "train_aes.json").write_text(json.dumps(rows))
    assert load_splits(HPDv3(path=str(tmp_path / "train_aes.json"), labels="soft")).train.column("preference") == [1.0]


@pytest.mark.parametrize("wrong", [[1], [0, 0], [-1, 2], [1, 2, 3]])
def test_hpdv3_votes_that_are_none(wrong, hpdv3):
    rows = json.loads((hpdv3 / "train.json").read_text())
    rows[2]["choice_dist"] = wrong
    (hpdv3 / "train.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"choice_dist is \[.*in row 2, and 1 rows"):
        load_splits(HPDv3(path=str(hpdv3 / "train.json")))
