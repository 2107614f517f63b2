"""The store of rows by content: nothing twice, nothing stale, nothing lost."""

import os
import signal

import pytest
import torch

from diffpo.disk.rows import ROWS_PER_FILE, Row, RowStore, as_keys, digest, key_at, locate
from diffpo.errors import UserError

KEYS = [digest(f"row {i}") for i in range(300)]


@pytest.fixture
def store(tmp_path):
    return lambda recipe=1: RowStore("squares", {"recipe": recipe}, tmp_path)


def compute(asked):
    def rows(places):
        for i in places:
            asked.append(i)
            yield Row({"square": i * i}, {"x": torch.full((2, 1), i, dtype=torch.bfloat16), "empty": torch.zeros(0, 3)})

    return rows


def test_rows_come_back_bit_for_bit(store):
    made = store()
    kinds = {
        "f": torch.randn(3, 2),
        "h": torch.randn(2).half(),
        "b": torch.randn(2).bfloat16(),
        "d": torch.randn(1).double(),
    }
    kinds |= {"i": torch.tensor([[1, -2]]), "t": torch.tensor([True, False]), "scalar": torch.tensor(1.5)}
    made.add(KEYS[:1], [Row({"note": "é", "none": None}, kinds)])
    made.refresh()
    row = made[KEYS[0]]
    assert row.values == {"note": "é", "none": None} and list(row.tensors) == list(kinds)
    for name, value in kinds.items():
        assert row.tensors[name].dtype == value.dtype and row.tensors[name].equal(value)
    row.tensors["f"].add_(1)  # what is read is the reader's own


def test_what_is_there_is_not_computed_again(store):
    asked = []
    store().fill(KEYS, compute(asked), "Squaring")
    store().fill(KEYS[::-1], compute(asked), "Squaring")
    assert sorted(asked) == list(range(300)) and len(store()) == 300
    assert [store()[key].values["square"] for key in KEYS[:5]] == [0, 1, 4, 9, 16]
    assert store()[KEYS[7]].tensors["x"].tolist() == [[7], [7]] and KEYS[7] in store()
    assert digest("another") not in store()
    with pytest.raises(KeyError):
        store()[digest("another")]


def test_another_recipe_is_another_store(store):
    store(1).fill(KEYS[:3], compute([]), "Squaring")
    assert len(store(2)) == 0 and store(1).folder != store(2).folder


def test_a_repeated_key_is_computed_once(store):
    asked = []
    store().fill([KEYS[0], KEYS[1], KEYS[0]], compute(asked), "Squaring")
    assert asked == [0, 1]


def test_processes_share_the_work_and_no_row_is_done_twice(store):
    asked = [[], []]
    for rank in (0, 1):  # as if they had begun at the same time: neither has seen what the other wrote
        pieces = store(3).pending(KEYS, rank=rank, world=2)
        asked[rank] = [i for piece in pieces for i in piece]
    assert sorted(asked[0] + asked[1]) == list(range(300))
    for rank in (0, 1):
        store().fill(KEYS, compute([]), "Squaring", rank=rank, world=2)
    assert len(store()) == 300


def test_a_kill_loses_one_file_at_most_and_the_rest_is_cut_alike(store):
    seen = []

    def dying(places):
        for row in compute([])(places):
            if row.values["square"] == 200 * 200:
                os.kill(os.getpid(), signal.SIGKILL)
            yield row

    child = os.fork()
    if not child:
        store().fill(KEYS, dying, "Squaring")
    os.waitpid(child, 0)
    assert len(store()) == ROWS_PER_FILE
    store().fill(KEYS, lambda places: compute(seen)(places), "Squaring")
    assert seen == list(range(ROWS_PER_FILE, 300)) and len(store()) == 300
    assert all(path.suffix in (".arrow", ".json") for path in store().folder.iterdir()), "the kill was swept"


def test_a_damaged_file_is_named(store):
    store().fill(KEYS[:3], compute([]), "Squaring")
    file = next(store().folder.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{file.name} is damaged .*delete it"):
        store()


def test_a_place_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="DIFFPO_CACHE"):
        RowStore("squares", {}, tmp_path / "file").add(KEYS[:1], [Row()])


def test_the_values_of_many_rows_are_read_at_once(store):
    made = store()
    for start in (0, 100):  # in two files, with one value in common
        places = range(start, start + 100)
        made.add(
            [KEYS[i] for i in places], [Row({"kind": "even" if i % 2 else "odd", "big": i >= 100}) for i in places]
        )
    made.refresh()
    asked = [150, 3, 3, 99, 100]
    codes, kinds = made.values([KEYS[i] for i in asked])
    assert [kinds[code] for code in codes] == [made[KEYS[i]].values for i in asked]
    assert len(kinds) == 2  # those that were asked for
    with pytest.raises(KeyError, match=KEYS[250].hex()):
        made.values([KEYS[0], KEYS[250]])
    assert made.values([])[0].size == 0


def test_keys_that_end_in_zeros_are_keys(store):
    keys = [b"x" * 15 + b"\0", b"x" * 14 + b"\0\0", b"\0" * 15 + b"x"]
    made = store()
    made.fill(keys, compute([]), "Squaring")
    assert [made[key].values["square"] for key in keys] == [0, 1, 4]
    assert [key_at(as_keys(keys), i) for i in range(3)] == keys


def test_the_index_is_small(store):
    """20 bytes a row: what a million rows cost."""
    made = store()
    made.fill(KEYS, compute([]), "Squaring")
    assert (made._keys.nbytes + made._order.nbytes) / len(made) == 20


def test_keys_that_begin_alike_are_told_apart():
    """Eight bytes are compared as a number; what follows decides among those that share them."""
    alike = [bytes([7] * 8 + [last] * 8) for last in (9, 3, 5)]
    ordered = as_keys([b"\0" * 15 + b"\1", *alike, alike[1], b"\xff" * 16])
    asked = as_keys([*alike, bytes([7] * 8 + [4] * 8), b"\xff" * 16, b"", b"\0" * 15 + b"\1"])
    assert locate(ordered, asked).tolist() == [1, 2, 3, -1, 5, -1, 0]
    assert locate(as_keys([]), asked).tolist() == [-1] * 7
