"""Rows, pictures and caches of their own for tests of tables; `conftest.py` of a folder takes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_encoder import TinyEncoder


@pytest.fixture(autouse=True)
def one_thread():
    """Convolutions of a few pixels are a hundred times slower when two busy cores wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Keep every cache, ours and that of `datasets`, inside the test's folder."""
    import datasets

    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "diffpo-cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture(scope="session")
def encoder():
    return TinyEncoder()


@pytest.fixture
def picture():
    """Write a random picture; its content depends on the file's name alone."""

    def write(path: Path, width: int = 24, height: int = 20) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        draws = np.random.default_rng(list(path.name.encode()))
        Image.fromarray(draws.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def records(tmp_path, picture):
    """Rows of a pair table whose images lie in `tmp_path/table/img`; prompts repeat every third row."""

    def make(rows: int, size=lambda i: (24, 20), **columns) -> list[dict]:
        made = []
        for i in range(rows):
            row = {"prompt": f"a shape number {i % 3}"}
            for side in ("chosen", "rejected"):
                picture(tmp_path / "table" / "img" / f"{side}{i}.png", *size(i))
                row[side] = f"img/{side}{i}.png"
            made.append(row | {name: fn(i) for name, fn in columns.items()})
        return made

    return make


@pytest.fixture
def jsonl(tmp_path):
    """Write rows as a JSONL table next to the folder of images."""

    def write(rows: list[dict], name: str = "pairs.jsonl") -> str:
        path = tmp_path / "table" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write
