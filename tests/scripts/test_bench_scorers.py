"""The benchmark of several scorers in one call: each image is decoded once."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_scorers


def test_one_call_decodes_each_image_once(tmp_path, capsys):
    assert bench_scorers.main(["--images", "24", "--size", "16", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["results"]) == {"apart", "shared"}
    for case in found["results"].values():
        assert (case["one"]["decodes"], case["one"]["most_per_image"]) == (24, 1)
        assert case["several"]["decodes"] == 72 and case["ratio"] > 0
    said = capsys.readouterr().out
    assert "24 images of 16x16" in said and "one call" in said and "72 decodes" in said
