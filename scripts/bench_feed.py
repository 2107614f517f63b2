"""Measure what happens around training: encoding, generation and scoring, in images per second and shares.

    python scripts/bench_feed.py encode generate score --json feed.json     # Stable Diffusion 1.5 and ViT-H; a GPU
    python scripts/bench_feed.py encode generate score --tiny               # small networks, for a machine without one
    python scripts/bench_feed.py encode --images 4096 --only bf16           # cases whose names hold a word
    python scripts/bench_feed.py encode generate score --seconds 120        # no case is begun after that

Networks have real architectures and random weights, pictures are coarse noise: no network access, no data. Every case
runs through the package's own path (`EncodingCache.fill`, `generate`, `score_folder`), whole: files are read, decoded,
and what is made is written. Beside it stands what the device alone does, with all its input in memory:

    per second      images in all; where there are several files, between the first and the last one that was written,
                    so without the start of processes; of generation, without the time in which networks are loaded
    of the device   steady, as a share of what the device does alone: how busy it is kept
    of the cores    processor time of all processes, as a share of the cores

The first case of each is how it was done before: one by one in float32 for encodings, four at a time in float32 for
images.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from diffpo.compat import ensure_torchvision, pick_device, quiet_libraries

ensure_torchvision()
quiet_libraries()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_machine import describe  # noqa: E402
from bench_rates import Found, measured, show, steady, with_share, written  # noqa: E402
from PIL import Image  # noqa: E402
from random_sd15 import make_pipeline  # noqa: E402
from tiny_texts import clip_tokenizer  # noqa: E402

from diffpo.data import Pairs, load_splits  # noqa: E402
from diffpo.data.cache import EncodingCache  # noqa: E402
from diffpo.disk.processes import cores  # noqa: E402
from diffpo.generation.generate import generate  # noqa: E402
from diffpo.generation.request import Request  # noqa: E402
from diffpo.generation.settings import GenerateOptions  # noqa: E402
from diffpo.generation.work import FITTED  # noqa: E402
from diffpo.media.folder import Media, read_settings, write_manifest  # noqa: E402
from diffpo.models.encoders import Encoders  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402
from diffpo.scorers.pickscore import PickScore  # noqa: E402
from diffpo.scorers.scores import score_folder  # noqa: E402

TEXTS = 16
"""Different captions: encoding images is what is measured."""
VIT_H = {
    "vision": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16},
    "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "rest": {"projection_dim": 1024},
    "pixels": {"image_size": 224, "patch_size": 14},
}
SMALL = {
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "rest": {"projection_dim": 32},
    "pixels": {"image_size": 28, "patch_size": 14},
}


class Bench:
    """A place with the networks, and what is asked for."""

    def __init__(self, root: Path, options: argparse.Namespace, enlarged: float = 1.5):
        """Make the pipeline; pictures that are encoded are first `enlarged` times as wide and high."""
        self.enlarged = enlarged
        self.root, self.options, self.device = root, options, torch.device(pick_device(options.device))
        self.size = 64 if options.tiny else 512
        self.pipeline = root / "pipeline"
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        make_pipeline(options.tiny, str(self.device), dtype).save_pretrained(self.pipeline)
        self.free()

    def free(self) -> None:
        """Let the device forget what nothing holds."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int = 3) -> float:
        """Median time of a piece of work on the device, after one that warms up."""
        times = []
        for _ in range(repeats + 1):
            self.synchronize()
            start = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def few(self, count: int) -> int:
        """So many images for a case that is slow; a tiny bench has few anyway."""
        return min(count, self.options.images)

    # Encoding

    def pairs(self, count: int) -> Path:
        """A table of JPEG files, larger than what is encoded."""
        folder = self.root / f"pairs-{count}"
        if (folder / "pairs.jsonl").exists():
            return folder / "pairs.jsonl"
        write_pictures([folder / f"{i:05d}.jpg" for i in range(count)], round(self.enlarged * self.size), quality=90)
        rows = (
            {"prompt": f"picture {row % TEXTS}", "chosen": f"{2 * row:05d}.jpg", "rejected": f"{2 * row + 1:05d}.jpg"}
            for row in range(count // 2)
        )
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "pairs.jsonl"

    def encode(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """One by one as before, together in both precisions, and with threads in place of processes."""
        many = self.options.images
        yield "one by one, float32", lambda: self._encode(self.few(192), "float32", encode_batch=1, workers=0)
        yield "together, float32", lambda: self._encode(self.few(512), "float32", encode_batch=16)
        yield "together, bf16", lambda: self._encode(many, "bfloat16", encode_batch=16)
        yield "together, bf16, threads", lambda: self._encode(self.few(1024), "bfloat16", encode_batch=16, workers=0)

    def _encode(self, count: int, dtype: Any, **how: Any) -> Found:
        encoders, found = self.encoded(count, dtype, **how)
        return with_share(found | self._alone(encoders, how["encode_batch"]))

    def encoded(self, count: int, dtype: Any, **how: Any) -> tuple[Encoders, Found]:
        """Encode so many pictures into a cache of their own; `how` are settings of the source."""
        cache = self.root / f"cache-{time.time_ns()}"
        how = {"resolution": self.size, "cache_dir": str(cache), "cache_dtype": "float16"} | how
        source = Pairs(path=str(self.pairs(count)), **how)
        encoders = Encoders(Full(path=str(self.pipeline), encoder_dtype=dtype), self.device)
        made = EncodingCache(load_splits(source).train, source, encoders, seed=0)
        encoders.encode_prompt("warm up")
        with measured(count) as found:
            made.fill()
        return encoders, found | steady(sorted(made.media.folder.glob("*.arrow"), key=written), count)

    def _alone(self, encoders: Encoders, batch: int) -> Found:
        """What the VAE does with pixels in memory, in its usual layout and another one, and how far batches differ."""
        draws = torch.Generator().manual_seed(0)
        frames = [torch.randint(0, 256, (3, 1, self.size, self.size), generator=draws, dtype=torch.uint8)] * batch
        if batch == 1:
            return {"device alone": 1 / self.seconds(lambda: encoders.encode_media(frames[0]))}

        def two() -> list[Any]:  # on their way at a time, as in the cache
            return [wait() for wait in [encoders.start_media(frames) for _ in range(2)]]

        found = {"device alone": 2 * batch / self.seconds(two)}
        alone, together = encoders.encode_media(frames[0])[0], encoders.start_media(frames)()[-1][0]
        found["difference"] = float((alone - together).abs().max() / alone.std())
        encoders.pipeline.vae.to(memory_format=torch.channels_last)
        found["device alone, channels last"] = 2 * batch / self.seconds(two)
        encoders.pipeline.vae.to(memory_format=torch.contiguous_format)
        return found

    # Generation

    def generate(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """As before, and as a GPU does by default."""
        yield "four at a time, float32", lambda: self._generate(self.few(8), dtype="float32", batch=4)
        yield "by default", lambda: self._generate(self.few(128))

    def _generate(self, count: int, **how: Any) -> Found:
        out = self.root / f"media-{time.time_ns()}"
        usual = {"model": str(self.pipeline), "device": str(self.device), "size": (self.size, self.size)}
        options = GenerateOptions(**usual, **how, steps=self.options.steps, seeds=tuple(range(count)))
        with measured(count) as found:
            generate(options, ["a picture"], out, label="random")
        request = Request.of(options)
        start = time.perf_counter()
        draw = request.open()
        found["loading"] = time.perf_counter() - start
        found["steady"] = count / (found["seconds"] - found["loading"])
        batch = min(count, request.fitting.most)
        start = time.perf_counter()
        draw([Media(file="", prompt="a picture", prompt_id=0, seed=seed, model="") for seed in range(batch)])
        found["device alone"] = batch / (time.perf_counter() - start)
        settings = read_settings(out)
        return with_share(found | {name: settings.get(name) for name in ("dtype", "batch", FITTED)})

    # Scoring

    def score(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """A PickScore of ViT-H/14."""
        folder = self._write_clip()
        for dtype in ("float32", "float16") if self.device.type == "cuda" else ("float32",):
            yield dtype, lambda dtype=dtype: self._score(folder, self.few(1024), dtype)

    def _write_clip(self) -> Path:
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

        sizes, tokenizer, folder = SMALL if self.options.tiny else VIT_H, clip_tokenizer(77), self.root / "pickscore"
        last = len(tokenizer) - 1
        ids = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last, "vocab_size": 49408}
        text, vision = (
            {**sizes["text"], **sizes["rest"], **ids},
            {**sizes["vision"], **sizes["rest"], **sizes["pixels"]},
        )
        with torch.device(self.device):
            network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, **sizes["rest"]))
        network.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        side = sizes["pixels"]["image_size"]
        processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        processor.save_pretrained(folder)
        return folder

    def _score(self, model: Path, count: int, dtype: Any) -> Found:
        folder = self.root / f"scored-{time.time_ns()}"
        names = [f"{i:05d}.png" for i in range(count)]
        write_pictures([folder / name for name in names], self.size)
        media = [Media(file=n, prompt=f"{i % TEXTS}", prompt_id=i, seed=i, model="x") for i, n in enumerate(names)]
        write_manifest(folder, media)
        scorer = PickScore(path=str(model), dtype=dtype, device=str(self.device))
        network, batch = scorer.tower.network, scorer.batch
        side = network.config.vision_config.image_size
        pixels = torch.zeros(batch, 3, side, side, device=self.device, dtype=network.dtype)
        with torch.no_grad():
            alone = batch / self.seconds(lambda: network.get_image_features(pixel_values=pixels))
        with measured(count) as found:
            score_folder(folder, [scorer])
        files = sorted(Path(os.environ["DIFFPO_CACHE"]).glob("scores/*/*.arrow"), key=written)[-(count // 64) :]
        return with_share(found | steady(files, count) | {"device alone": alone})


def write_pictures(files: Sequence[Path], size: int, **how: Any) -> None:
    """Write pictures of coarse noise, every one another."""

    def write(file: Path) -> None:
        draws = np.random.default_rng(list(file.name.encode()))
        coarse = draws.integers(0, 256, (max(4, size // 16), max(4, size // 16), 3), np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, **how)

    files[0].parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, files))


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="+", choices=("encode", "generate", "score"))
    parser.add_argument("--tiny", action="store_true", help="small networks and images")
    parser.add_argument("--images", type=int, default=2048, help="of the largest case")
    parser.add_argument("--steps", type=int, default=10, help="of the sampler")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further case after these")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args(arguments)
    results: dict[str, dict[str, Found]] = {}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        os.environ["DIFFPO_CACHE"] = f"{place}/cache"
        bench = Bench(Path(place), options)
        for what in options.what:
            for name, case in getattr(bench, what)():
                if time.perf_counter() - began > options.seconds:
                    print(f"no time for {what} {name}")
                elif options.only in name:
                    results.setdefault(what, {})[name] = case()
                    bench.free()
                    show({what: {name: results[what][name]}})
                    if options.json:
                        report = {"machine": describe(bench.device) | {"cores": cores()}, "results": results}
                        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print()
    show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
