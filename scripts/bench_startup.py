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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def build(folder: Path, rows: int, latent: Sequence[int] = (4, 1, 1, 1), text: Sequence[int] = (2, 2)) -> None:
    """Write a table, its files and its encodings: none is computed, and files of a thousand rows are links to one.

    Encodings have the shapes `latent` and `text`.
    """
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
    moments = {name: torch.zeros(*latent) for name in ("mean", "std")}
    image = Row({"target": [1, PIXELS, PIXELS]}, {**moments, "size": torch.zeros(6, dtype=torch.int64)})
    fill(cache.media, cache.image_keys, image)
    fill(cache.texts, cache.text_keys, Row({"cut": []}, {"text": torch.zeros(*text)}))


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


@contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Note in `found` by how much memory grows in a block: at its end, and at its peak."""
    import threading

    before, done = own_memory(), threading.Event()
    peak = [before]

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    found |= {"memory": own_memory() - before, "peak": max(peak[0], own_memory()) - before}


def open_loader(folder: Path) -> Any:
    """Do what training does before it plans its batches."""
    from diffpo.data import load_splits
    from diffpo.data.cache import EncodingCache
    from diffpo.data.loader import PairLoader

    table = load_splits(source(folder)).train
    cache = EncodingCache(table, source(folder), Encoder(), seed=0)
    cache.fill()
    return PairLoader(table, cache.open(), seed=0, caption_dropout=0.1)


def prepare(folder: Path) -> int:
    """Do what training does before its first update; returns the number of pairs."""
    from diffpo.data.plan import Schedule

    loader = open_loader(folder)
    schedule = Schedule(0, loader.groups, micro_batch=8)
    loader.batch(schedule.indices(0, 0)[0], 0)
    KEPT.append(loader)
    return len(loader.table)


def start(folder: Path) -> dict[str, float]:
    """Measure `prepare`, without what a process costs that has no rows at all."""
    found: dict[str, float] = {}
    prepare(folder.with_name("small"))
    with watched(found):
        cpu, wall = time.process_time(), time.perf_counter()
        rows = prepare(folder)
        found |= {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "rows": rows}
    return found


def curve(counts: Sequence[int], home: Path) -> Iterator[dict[str, float]]:
    """Measure each number of rows in a process of its own, with tables that are made below `home`."""
    (home / "small").mkdir()
    build(home / "small", 16)
    print(f"{'rows':>8} {'CPU s':>8} {'us/row':>8} {'wall s':>8} {'bytes/row':>10} {'at the peak':>12}")
    for rows in counts:
        folder = home / str(rows)
        folder.mkdir()
        build(folder, rows)
        command = [sys.executable, __file__, "--start", str(folder)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(
            f"{rows:>8} {found['cpu']:>8.2f} {found['cpu'] / rows * 1e6:>8.1f} {found['wall']:>8.2f} "
            f"{found['memory'] / rows:>10.0f} {found['peak'] / rows:>12.0f}",
            flush=True,
        )
        shutil.rmtree(folder)
        yield found


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where tables are made; a temporary folder by default")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        print(json.dumps(start(given.start)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as home:
        results = list(curve(given.rows, Path(home)))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
