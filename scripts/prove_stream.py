"""Show that training from shards loses no pair and sees none twice: over epochs, processes and kills.

    python scripts/prove_stream.py                                # 100,000 tiny pairs in a folder
    python scripts/prove_stream.py --address s3://proof/pairs     # in a small S3 server that it starts (moto, s3fs)

Writes shards of tiny pairs, each with its number inside. Then processes read updates as training does, each its share,
and write down the numbers that they find in what they read. Now and then all of them are killed, and begin again after
the last update that all had written down, with another number of processes: what a resumed training does. At the end
every epoch must hold each number once, but for those of the last pairs that fill no batch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from diffpo.data import Pairs
from diffpo.data.records import Counts
from diffpo.data.shards import Index, Shard, ShardSplit
from diffpo.data.storage import Storage
from diffpo.data.streamed import StreamLoader
from diffpo.disk.packing import Row, write
from diffpo.disk.rows import digest

EFFECTIVE, SHARD_ROWS, EPOCHS = 32, 500, 2
EMPTY = digest("")


def make(address: str, rows: int) -> None:
    """Write the shards, of two image sizes, and their index."""
    storage, shards = Storage(address), []
    text = Row({}, {"text": torch.zeros(2, 2)})
    for number, first in enumerate(range(0, rows, SHARD_ROWS)):
        made = [pair(row) for row in range(first, min(rows, first + SHARD_ROWS))]
        keys = [digest(str(first + i)) for i in range(len(made))]
        name = f"train/{number:05d}.arrow"
        storage.write(name, lambda file, keys=keys, made=made: write(file, [*keys, EMPTY], [*made, text]))
        shards.append(Shard(name, len(made), (1, 8, 8) if first < rows // 3 else (1, 8, 16), str(number)))
    Index({}, ("prompt",), {"train": ShardSplit(tuple(shards), Counts(rows))}).write(storage)


def pair(number: int) -> Row:
    """A pair whose latents are its number."""
    latent = torch.full((1, 1, 1, 1), float(number))
    tensors = {f"{side}_mean": latent for side in ("chosen", "rejected")}
    tensors |= {f"{side}_size": torch.zeros(6, dtype=torch.int64) for side in ("chosen", "rejected")}
    return Row({"captions": {"chosen": EMPTY.hex(), "rejected": EMPTY.hex()}, "preference": 1.0}, tensors)


def read(address: str, log: Path, start: int, rank: int, world: int) -> None:
    """Read a process's share of the updates from one on, and write down what was in them."""
    storage = Storage(address)
    source = Pairs(path="any", cache_dir=str(log.parent / "cache"), encoded_window=4)
    loader = StreamLoader(storage, Index.read(storage), "train", source, seed=0, caption_dropout=0.0, rank=rank)
    plan = loader.schedule(world, 2, EFFECTIVE // world // 2)
    with log.open("a") as file:
        updates = loader.updates(plan, start, EPOCHS * plan.updates_per_epoch, rank=rank)
        for update, batches in enumerate(updates, start):
            numbers = [int(x) for batch in batches for x in batch.latent.chosen.flatten().tolist()]
            file.write(json.dumps([update, numbers]) + "\n")
            file.flush()


def prove(address: str, rows: int, kills: int, home: Path) -> dict[str, int]:
    """Run, kill, go on, and count; returns what was counted."""
    seen: dict[int, list[int]] = {}
    per_epoch = sum(
        sum(shard.rows for shard in Index.read(Storage(address)).splits["train"].shards if shard.size == size)
        // EFFECTIVE
        for size in ((1, 8, 8), (1, 8, 16))
    )
    total, turn, killed = EPOCHS * per_epoch, 0, 0
    while len(seen) < total:
        world, start = (1, 2, 4)[turn % 3], len(seen)
        logs = [home / f"{turn}-{rank}.jsonl" for rank in range(world)]
        command = [sys.executable, __file__, "--address", address, "--read"]
        readers = [
            subprocess.Popen([*command, str(log), str(start), str(rank), str(world)]) for rank, log in enumerate(logs)
        ]
        until = start + total // (kills + 1) if turn < kills else total
        while any(reader.poll() is None for reader in readers):
            time.sleep(0.2)
            if turn < kills and min(done(log) for log in logs) >= until:
                for reader in readers:
                    reader.send_signal(signal.SIGKILL)
        codes = [reader.wait() for reader in readers]
        assert all(code in (0, -signal.SIGKILL) for code in codes), codes
        killed += -signal.SIGKILL in codes
        shares = [entries(log) for log in logs]
        for update in range(start, start + min(map(len, shares))):
            seen[update] = [number for share in shares for number in share[update]]
        turn += 1
    for epoch in range(EPOCHS):
        counted = Counter(n for update in range(epoch * per_epoch, (epoch + 1) * per_epoch) for n in seen[update])
        assert max(counted.values()) == 1, "a pair came twice"
        assert len(counted) == per_epoch * EFFECTIVE > rows - 2 * EFFECTIVE, "pairs were lost"
        assert set(counted) <= set(range(rows))
    return {"rows": rows, "epochs": EPOCHS, "updates": total, "starts": turn, "kills": killed}


def done(log: Path) -> int:
    """The updates that a log holds, whole."""
    found = entries(log)
    return max(found) + 1 if found else 0


def entries(log: Path) -> dict[int, list[int]]:
    """What a log says, but for a line that a kill cut."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return dict(json.loads(line) for line in lines)


def serve() -> subprocess.Popen[bytes]:
    """Start a small S3 server, and let fsspec find it."""
    port = 5011
    os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["FSSPEC_S3_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    import s3fs

    for _ in range(100):
        try:
            s3fs.S3FileSystem(use_listings_cache=False).mkdir("proof")
            return server
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the S3 server does not answer")


def main() -> int:
    """Prove it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", help="a folder by default; s3://proof/... starts a server")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--read", nargs=4, metavar=("LOG", "START", "RANK", "WORLD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        log, *numbers = options.read
        read(options.address, Path(log), *map(int, numbers))
        return 0
    home = Path(tempfile.mkdtemp())
    address = options.address or str(home / "shards")
    server = serve() if address.startswith("s3://proof/") else None
    try:
        start = time.perf_counter()
        make(address, options.rows)
        made = time.perf_counter()
        found = prove(address, options.rows, options.kills, home)
        seconds = {"writing": round(made - start, 1), "reading": round(time.perf_counter() - made, 1)}
        print(f"every pair came once in every epoch: {found | seconds}")
    finally:
        if server is not None:
            server.terminate()
            server.wait()
        shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
