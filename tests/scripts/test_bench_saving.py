"""The benchmark of checkpoints: both ways are measured on the real loop."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_saving


def test_both_ways_are_measured(tmp_path, capsys):
    tiny = ["--updates", "1", "--every", "1", "--rounds", "1", "--folder", str(tmp_path)]
    found = bench_saving.main([*tiny, "data.limit=4", "train.batch=1"])
    assert found["mebibytes"] > 10 and {way: len(times) for way, times in found["still"].items()} == {
        "waiting": 1,
        "background": 1,
    }
    assert "| in the background |" in capsys.readouterr().out and not list(tmp_path.iterdir())
