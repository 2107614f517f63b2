"""Seeds that nobody knows are said to be unknown, and images of a prompt meet in their order."""

from dataclasses import replace

import pytest
from judged import compare_two, write_folder

from diffpo.compare.compare import Judging
from diffpo.scorers.scores import read_scores, write_scores

FIRST = {f"p{i}": [0.0, 1.0, 2.0 + i] for i in range(8)}
SECOND = {f"p{i}": [0.5, 0.5, 3.0 + i] for i in range(8)}


def forget_seeds(folder):
    table = read_scores(folder)
    write_scores(folder / "scores.parquet", replace(table, rows=[replace(row, seed=None) for row in table.rows]))
    return folder


@pytest.fixture
def two(tmp_path):
    return [write_folder(tmp_path / "a", "ours", {"x": FIRST}), write_folder(tmp_path / "b", "theirs", {"x": SECOND})]


def test_unknown_is_said_to_be_unknown(two):
    assert "All prompts share the same 3 seeds" in " ".join(compare_two(two).notes)
    forget_seeds(two[1])
    notes = " ".join(compare_two(two).notes)
    assert "share the same" not in notes
    assert (
        "The seeds of theirs are unknown. Images of a prompt are paired in their order, not by the same noise." in notes
    )
    found = compare_two(two)
    assert "comparisons on the same prompts, of images in their order" in found.headline and not found.seeds_known
    forget_seeds(two[0])
    assert "The seeds of ours and theirs are unknown." in " ".join(compare_two(two).notes)
    assert "in their order" not in " ".join(compare_two(two, judging=Judging(mode="mean-over-seeds")).notes)


def test_the_nth_images_meet(two):
    """Of each prompt one is won, one lost, one won: as with seeds 0, 1, 2."""
    known = compare_two(two).results[0]
    forget_seeds(two[1])
    unknown = compare_two(two).results[0]
    assert (unknown.win_rate.wins, unknown.win_rate.losses) == (16, 8)
    assert unknown == known


def test_places_stand_in_for_the_seeds_of_the_other_model_too(two):
    """One folder knows its seeds, 10, 11 and 12; the other does not know its own."""
    known = compare_two(two).results[0]
    table = read_scores(two[0])
    write_scores(
        two[0] / "scores.parquet", replace(table, rows=[replace(row, seed=row.seed + 10) for row in table.rows])
    )
    forget_seeds(two[1])
    assert compare_two(two).results[0] == known


def test_one_unknown_seed_makes_no_two_scores_of_an_image(two):
    table = read_scores(two[1])
    rows = [replace(row, seed=None if row.seed else 0) for row in table.rows]
    write_scores(two[1] / "scores.parquet", replace(table, rows=rows))
    assert compare_two(two).n_pairs == 24
