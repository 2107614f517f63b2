"""The curves of docs/speed.md: reading ahead is measured as training reads, and what the page shows can be drawn."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_curves  # noqa: E402
import bench_startup  # noqa: E402
import check_plan  # noqa: E402

from diffpo.config.run import load_config  # noqa: E402


@pytest.mark.parametrize("way", bench_curves.WAYS)
def test_updates_are_read_in_both_ways(tmp_path, way):
    bench_startup.build(tmp_path, 32)
    found = bench_curves.read(tmp_path, way, 2)
    assert found["way"] == way and found["micro steps"] == 2 and found["peak"] >= found["memory"]
    assert 0 < found["first"] < 5 and 0 <= found["waiting"] < 5


def test_the_pages_curves_are_whole_and_can_be_drawn(tmp_path):
    results = json.loads((ROOT / "docs" / "speed.json").read_text())
    bench_curves.draw(results, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert [point["rows"] for point in results["start"]["points"]] == [10_000, 100_000, 1_000_000]


def test_what_is_planned_are_configurations_of_ours():
    assert len({name for name, _, _ in check_plan.ROWS}) >= 6
    for name, overrides, _ in check_plan.ROWS:
        load_config(ROOT / "configs" / f"{name}.yaml", overrides.split())
