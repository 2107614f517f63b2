"""The benchmark of a training's start: what it builds is what training finds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_startup


def test_what_is_built_is_complete(tmp_path):
    bench_startup.build(tmp_path, 20)
    assert bench_startup.prepare(tmp_path) == 20
    assert bench_startup.KEPT.pop().groups[0].tolist() == list(range(20))
