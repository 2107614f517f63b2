"""Measure what encoding a clip takes in memory: a file is decoded, resized, cropped and encoded by a tiny Wan VAE.

    python scripts/bench_clips.py                              # 41, 81 and 121 frames, 512x288
    python scripts/bench_clips.py --frames 121 --size 720x1280 --json clips.json

Each length runs in a process of its own, whose allocator gives back at once what is freed. Peaks are of the whole
process's resident memory (Linux), above what it had before the file was opened. `kept` is what must be there of a whole
clip: its pixels, 3 bytes each. The rest is what decoding and the VAE take for the frames that are read at a time: that
does not grow with the clip.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

MIB = 2**20
FREES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""The settings of glibc's allocator under which resident memory is what is in use."""


def measure(file: Path, frames: int, height: int, width: int, channels: int) -> dict[str, float]:
    """Encode the first frames of a file in this process: MiB and seconds."""
    import torch
    from bench_machine import forget_peak, peak_memory

    from diffpo.compat import quiet_libraries

    quiet_libraries()
    from diffusers import AutoencoderKLWan

    from diffpo.data.images import CENTRE, prepare
    from diffpo.media.frames import open_footage
    from diffpo.models.encoders import encode_frames
    from diffpo.models.wan import Wan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=channels, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    cpu = torch.device("cpu")

    def encode(count: int) -> int:
        with open_footage(file) as footage, torch.no_grad():
            numbers = footage.choose(count, 16)
            pixels = prepare(footage.frames(numbers), count, (height, width), CENTRE)
            encode_frames(Wan, SimpleNamespace(vae=vae), pixels.frames[None])
        return pixels.pixels.nbytes

    encode(5)  # what libraries load and keep is there before
    forget_peak(cpu)
    before, start = peak_memory(cpu), time.perf_counter()
    kept = encode(frames) / MIB
    peak, seconds = (peak_memory(cpu) - before) * 1024, time.perf_counter() - start
    return {"frames": frames, "peak": peak, "kept": kept, "rest": peak - kept, "seconds": seconds}


def main() -> None:
    """Write a video file and measure each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[41, 81, 121], help="k * 4 + 1 each")
    parser.add_argument("--size", default="288x512", help="HEIGHTxWIDTH")
    parser.add_argument("--channels", type=int, default=4, help="of the VAE's first layer; Wan 2.1 has 96")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    height, width = map(int, asked.size.split("x"))
    if asked.one:
        print(json.dumps(measure(Path(asked.one[0]), int(asked.one[1]), height, width, asked.channels)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        file.write_bytes(film(max(asked.frames), 2 * height, 2 * width))
        found = []
        for frames in asked.frames:
            line = [sys.executable, __file__, "--size", asked.size, "--channels", str(asked.channels)]
            done = subprocess.run(
                [*line, "--one", file, str(frames)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | FREES,
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print("  ".join(f"{name} {value:.0f}" for name, value in found[-1].items()))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


def film(frames: int, height: int, width: int) -> bytes:
    """A video file at 16 frames per second: a ramp that moves."""
    import numpy as np
    from PIL import Image

    from diffpo.media.frames import Clip, encode

    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pictures = [
        Image.fromarray(np.stack([x * 127 / width + i, y * 255 / height, 0 * x + 2 * i % 256], axis=2).astype(np.uint8))
        for i in range(frames)
    ]
    return encode(Clip(tuple(pictures), 16.0), ".mp4")


if __name__ == "__main__":
    main()
