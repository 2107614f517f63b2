"""The measurement of memory runs, and says what it measured."""

import bench_clips


def test_a_small_clip_is_measured(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(bench_clips.film(9, 64, 96))
    found = bench_clips.measure(tmp_path / "clip.mp4", 9, 32, 48, channels=4)
    assert found["frames"] == 9 and found["kept"] == 9 * 32 * 48 * 3 / bench_clips.MIB
    assert found["seconds"] > 0
