"""The benchmark of two versions: both train in processes of their own, and take turns."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_against


@pytest.mark.slow
def test_two_versions_take_turns(capsys):
    bench_against.main([str(bench_against.HERE), "--starts", "1", "--rounds", "2", "train.batch=1", "data.limit=4"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| in ")]
    assert [row.split("|")[1].strip() for row in rows] == ["in all", "in the program", "in the kernel"]
    assert all(float(cell.split()[0]) > 0 for cell in rows[0].split("|")[2:5])
