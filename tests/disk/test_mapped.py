"""Tables that are kept and mapped: made once, made again when damaged, in memory where nothing can be written."""

import pyarrow
import pytest

from diffpo.disk import mapped as store
from diffpo.disk.mapped import mapped

TABLE = pyarrow.table({"text": [f"row {i}" for i in range(50)], "number": range(50)})


class Maker:
    """Counts how often the table is made."""

    made = 0

    def __call__(self):
        self.made += 1
        return TABLE


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(store, "SMALL", 100)
    return Maker()


def test_a_table_is_made_once_and_takes_no_memory(make, tmp_path):
    file = tmp_path / "tables" / "a.arrow"
    before = pyarrow.total_allocated_bytes()
    for _ in range(2):
        rows = mapped(file, make)
        assert rows.data.table == TABLE and rows.cache_files == [{"filename": str(file)}]
    assert make.made == 1 and pyarrow.total_allocated_bytes() == before


def test_a_damaged_file_is_made_again(make, tmp_path):
    file = tmp_path / "a.arrow"
    mapped(file, make)
    file.write_bytes(file.read_bytes()[:-300])
    assert mapped(file, make).data.table == TABLE and make.made == 2
    assert mapped(file, make).data.table == TABLE and make.made == 2


def test_where_nothing_can_be_written_it_stays_in_memory(make, tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    assert mapped(tmp_path / "file" / "a.arrow", make).data.table == TABLE
    assert "stays in memory" in caplog.text


def test_small_tables_get_no_file(tmp_path):
    assert mapped(tmp_path / "a.arrow", Maker()).data.table == TABLE and not list(tmp_path.iterdir())
