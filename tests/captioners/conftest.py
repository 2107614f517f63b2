"""Small random language models of the real classes, as folders."""

import functools
from pathlib import Path

import pytest
import torch
from tiny_language import MODELS


@pytest.fixture(scope="session")
def language_model(tmp_path_factory):
    """Folders of the tiny models: `language_model("llava")` saves one on its first call."""
    root = tmp_path_factory.mktemp("language")

    @functools.cache
    def folder(name: str) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            MODELS[name](root / name)
        return root / name

    return folder
