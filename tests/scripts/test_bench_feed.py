"""The benchmark of encoding, generation and scoring, on small networks."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench


def test_all_three_are_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "cache"))
    asked = ["encode", "generate", "score", "--tiny", "--images", "8", "--steps", "1", "--device", "cpu"]
    assert bench.main([*asked, "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert {what: len(cases) for what, cases in found.items()} == {"encode": 4, "generate": 2, "score": 1}
    for cases in found.values():
        for case in cases.values():
            assert case["images"] == 8 and case["per second"] > 0 and case["of the device"] > 0
    assert found["encode"]["together, float32"]["difference"] < 1e-4
    assert found["generate"]["by default"]["dtype"] == "float32" and found["generate"]["by default"]["batch"] == 4
    assert "of the device" in capsys.readouterr().out
