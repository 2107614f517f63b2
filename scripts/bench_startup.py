"""What a training start costs for a table of paths whose encodings are there: time and memory by the number of rows.

    python scripts/bench_startup.py [--rows 10000 100000 1000000] [--folder FOLDER]

Makes a JSONL table with two image files of its own for every row (links), and a store of encodings in the usual form
which no network has made. Then a fresh process does what training does before its first update: it reads the table,
looks at every file, finds its encodings, groups the rows and makes a batch.

Printed are CPU seconds (of the process and the system, `time.process_time`) and the growth of memory, at the end and at
its peak, which is looked at 50 times a second. Memory is `RssAnon` of /proc/self/status: pages that map a file, such as
the Arrow files of tables and encodings, do not count. A table of 16 rows is prepared first and not counted, so imports
and other costs that have nothing to do with rows are left out. `build` reads the table once, so it has been parsed
before, as it has at every start of a training but the first; that costs about 6 us per row more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from diffpo.disk.packing import KEY_BYTES
from diffpo.media.footage import FrameRule

PIXELS, ENCODER = 8, "bench"
SIDES = ("chosen", "rejected")
FILE_ROWS = 4096
"""Of encodings."""
KEPT = []
"""What training would hold: its memory is counted."""


class Encoder:
    """The identity of an encoder; nothing is encoded with it."""

    fingerprint, multiple, usual_batch = ENCODER, PIXELS, 1
    rule = FrameRule()


def source(folder: Path):
    """The table in `folder`, with its caches."""
    from diffpo.data import Pairs

    return Pairs(path=str(folder / "pairs.jsonl"), resolution=PIXELS, cache_dir=str(folder / "cache"))


def build(folder: Path, rows: int) -> None:
    """Write a table, its files and its encodings: none is computed, and files of a thousand rows are links to one."""
    import io

    import torch
    from PIL import Image

    from diffpo.data import load_splits
    from diffpo.data.cache import EncodingCache
    from diffpo.disk.rows import Row

    png = io.BytesIO()
    Image.new("RGB", (PIXELS, PIXELS)).save(png, "PNG")
    with (folder / "pairs.jsonl").open("w") as table:
        for i in range(rows):
            place = folder / "images" / f"{i // 1000:04d}"
            if i % 1000 == 0:
                place.mkdir(parents=True)
                (place / "picture.png").write_bytes(png.getvalue())
            row = {"prompt": f"a picture of many things, number {i}"}
            for side in SIDES:
                row[side] = f"images/{place.name}/{i:06d}-{side}.png"
                os.link(place / "picture.png", folder / row[side])
            table.write(json.dumps(row) + "\n")
    table = load_splits(source(folder)).train
    for side in SIDES:
        remember(table, side, folder / "cache")
    cache = EncodingCache(table, source(folder), Encoder(), seed=0)
    moments = {name: torch.zeros(4, 1, 1, 1) for name in ("mean", "std")}
    image = Row({"target": [1, PIXELS, PIXELS]}, {**moments, "size": torch.zeros(6, dtype=torch.int64)})
    text = Row({"cut": []}, {"text": torch.zeros(2, 2)})
    fill(cache.media, cache.image_keys, image)
    fill(cache.texts, cache.text_keys, text)


def remember(table: Any, side: str, home: Path) -> None:
    """Let the contents of a side's files be known, as after a start that read them: every one another."""
    from diffpo.data import contents

    stamps, _ = contents._stamps(table, side)
    keys = np.random.default_rng(list(side.encode())).bytes(KEY_BYTES * len(stamps))
    contents._remember(
        contents._memory(table, side, home), np.zeros(0, contents.REMEMBERED), stamps, np.frombuffer(keys, stamps.dtype)
    )


def fill(store: Any, keys: np.ndarray, made: Any) -> None:
    """Write a store's files, with the same content in every row."""
    import pyarrow

    from diffpo.disk.rows import key_at

    few = min(FILE_ROWS, len(keys))
    store.add([key_at(keys, i) for i in range(few)], [made] * few)
    (first,) = store.folder.glob("*.arrow")
    rows = pyarrow.ipc.open_file(str(first)).read_all().combine_chunks()
    for start in range(few, len(keys), FILE_ROWS):
        some = keys[start : start + FILE_ROWS]
        column = pyarrow.FixedSizeBinaryArray.from_buffers(
            pyarrow.binary(KEY_BYTES), len(some), [None, pyarrow.py_buffer(some.tobytes())]
        )
        table = rows.slice(0, len(some)).set_column(0, "key", column)
        with pyarrow.ipc.new_file(str(store.folder / f"{start:08d}.arrow"), rows.schema) as writer:
            writer.write_table(table, max_chunksize=256)


def own_memory() -> int:
    """Bytes of this process that are no map of a file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def prepare(folder: Path) -> int:
    """Do what training does before its first update; returns the number of pairs."""
    from diffpo.data import load_splits
    from diffpo.data.cache import EncodingCache
    from diffpo.data.loader import PairLoader
    from diffpo.data.plan import Schedule

    table = load_splits(source(folder)).train
    cache = EncodingCache(table, source(folder), Encoder(), seed=0)
    cache.fill()
    loader = PairLoader(table, cache.open(), seed=0, caption_dropout=0.1)
    schedule = Schedule(0, loader.groups, micro_batch=8)
    loader.batch(schedule.indices(0, 0)[0], 0)
    KEPT.append(loader)
    return len(table)


def start(folder: Path) -> dict[str, float]:
    """Measure `prepare`, without what a process costs that has no rows at all."""
    import threading

    prepare(folder.with_name("small"))
    before, cpu, wall = own_memory(), time.process_time(), time.perf_counter()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = prepare(folder)
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "memory": own_memory() - before}
    done.set()
    watcher.join()
    return spent | {"peak": max(peak[0], own_memory()) - before, "rows": rows}


def main() -> None:
    """Measure each number of rows in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where tables are made; a temporary folder by default")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--picture", type=Path, metavar="OUT")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        print(json.dumps(start(given.start)))
        return
    results = []
    print(f"{'rows':>8} {'CPU s':>8} {'us/row':>8} {'wall s':>8} {'bytes/row':>10} {'at the peak':>12}")
    with tempfile.TemporaryDirectory(dir=given.folder) as home:
        (Path(home) / "small").mkdir()
        build(Path(home) / "small", 16)
        for rows in given.rows:
            folder = Path(home) / str(rows)
            folder.mkdir()
            build(folder, rows)
            command = [sys.executable, __file__, "--start", str(folder)]
            found = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            print(
                f"{rows:>8} {found['cpu']:>8.2f} {found['cpu'] / rows * 1e6:>8.1f} {found['wall']:>8.2f} "
                f"{found['memory'] / rows:>10.0f} {found['peak'] / rows:>12.0f}",
                flush=True,
            )
            results.append(found)
            shutil.rmtree(folder)
            if given.json:
                given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.picture:
        draw(results, given.picture)


def draw(results: list[dict[str, float]], file: Path) -> None:
    """Draw time and memory by the number of rows, with what is asked for."""
    import matplotlib.pyplot as plt

    rows = [found["rows"] for found in results]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.loglog(rows, [found["cpu"] for found in results], "o-", label="processor")
    left.loglog(rows, [found["wall"] for found in results], "s--", label="clock")
    left.set(title="start of a training", xlabel="rows", ylabel="seconds")
    left.axhline(30, color="grey", linestyle=":", label="30 s")
    right.loglog(rows, [found["peak"] / 2**20 for found in results], "o-", label="at the peak")
    right.loglog(rows, [found["memory"] / 2**20 for found in results], "s--", label="while training")
    right.axhline(1024, color="grey", linestyle=":", label="1 GiB")
    right.set(title="memory that is no map of a file", xlabel="rows", ylabel="MiB")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
