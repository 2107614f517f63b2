"""What describes, labels, embeds and judges: answers are kept by provenance, so whatever decides one stands in it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from diffpo.captioners import CAPTIONERS, EMBEDDERS, JUDGES, LABELLERS, PERTURBERS
from diffpo.captioners.labellers import ScorerLabeller
from diffpo.scorers import ShapesUtility

CLASSES = [cls for kind in (CAPTIONERS, PERTURBERS, LABELLERS, EMBEDDERS, JUDGES) for cls in kind.values()]
GIVEN = {
    "url": "http://localhost:8000/v1",
    "model": "tiny",
    "temperature": 0.5,
    "top_p": 0.9,
    "instruction": "Tell it: {prompt}",
    "scorer": ShapesUtility(),
}
"""What instances are made with, where they have such an option; draws depend on the seed."""
OTHERS = {
    "url": "http://localhost:8001/v1",
    "model": "another",
    "of": "another",
    "dtype": "float16",
    "temperature": 0.6,
    "top_p": 0.8,
    "instruction": "Say it: {prompt}",
    "level": "strong",
    "order": 20,
    "prefix": "Change it.",
    "shown": "videos",
    "decoding": "words",
    "splits": "ignore",
    "features": "pooled",
    "layers": (-1, 0),
    "fps": 4.0,
}
"""Other values of options; a whole number becomes one larger."""
NO_MATTER = {"device", "batch", "key_variable", "timeout", "retries", "wait"}
"""How, and not what, is asked."""
ELSEWHERE = {
    "path": "of what lies there the content counts",
    "tokenizer": "so does its",
    "sees": "another instruction goes with it",
    "scorer": "its provenance is in there",
    "margin": "in the rule: answers are kept whatever it is",
}


@pytest.fixture
def model(tmp_path):
    """Files that are named, and never loaded."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    return str(tmp_path)


@pytest.mark.parametrize("cls", [*CLASSES, ScorerLabeller], ids=lambda cls: cls.__name__)
def test_every_option_that_decides_an_answer_is_in_the_provenance(cls, model):
    """An option that it lacks would be given the answers of another one."""
    names = [field.name for field in fields(cls)]
    made = cls(**{name: value for name, value in (GIVEN | {"path": model}).items() if name in names})
    for name in names:
        if name not in NO_MATTER | ELSEWHERE.keys():
            value = OTHERS[name] if name in OTHERS else getattr(made, name) + 1
            changed = replace(made, **{name: value})
            assert getattr(made, name) != value and changed.provenance != made.provenance, name
    same = {name: getattr(made, name) + 1 for name in ("batch", "retries") if name in names}
    assert replace(made, **same).provenance == made.provenance
    assert "margin" not in names or replace(made, margin=1.0).rule != made.rule
