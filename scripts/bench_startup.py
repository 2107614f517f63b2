"""What a training start costs for a table of paths whose encodings are there: time and memory by the number of rows.

    python scripts/bench_startup.py [--rows 10000 50000 200000] [--folder FOLDER]

Makes a JSONL table with two image files of its own for every row, and fills the store of encodings without a network,
with rows of the usual form. Then a fresh process does what training does before its first update: it reads the table,
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
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from diffpo.media.footage import FrameRule

PIXELS, ENCODER = 8, "bench"
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
    """Write a table, its files and its encodings."""
    import io

    import torch
    from PIL import Image

    from diffpo.data import load_splits
    from diffpo.data.cache import EncodingCache
    from diffpo.disk.rows import Row, key_at

    png = io.BytesIO()
    Image.new("RGB", (PIXELS, PIXELS)).save(png, "PNG")
    with (folder / "pairs.jsonl").open("w") as table:
        for i in range(rows):
            place = folder / "images" / f"{i // 1000:04d}"
            place.mkdir(parents=True, exist_ok=True)
            row = {"prompt": f"a picture of many things, number {i}"}
            for side in ("chosen", "rejected"):
                (place / f"{i:06d}-{side}.png").write_bytes(png.getvalue() + f"{side} {i}".encode())
                row[side] = f"images/{i // 1000:04d}/{i:06d}-{side}.png"
            table.write(json.dumps(row) + "\n")
    cache = EncodingCache(load_splits(source(folder)).train, source(folder), Encoder(), seed=0)
    moments = {name: torch.zeros(4, 1, 1, 1) for name in ("mean", "std")}
    image = Row({"target": [1, PIXELS, PIXELS]}, {**moments, "size": torch.zeros(6, dtype=torch.int64)})
    text = Row({"cut": []}, {"text": torch.zeros(2, 2)})
    for store, keys, made in ((cache.media, cache.image_keys, image), (cache.texts, cache.text_keys, text)):
        for start in range(0, len(keys), 1024):
            some = keys[start : start + 1024]
            store.add([key_at(some, i) for i in range(len(some))], [made] * len(some))


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
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--folder", type=Path, help="where tables are made; a temporary folder by default")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        print(json.dumps(start(given.start)))
        return
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


if __name__ == "__main__":
    main()
