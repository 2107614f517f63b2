"""No model runs code: every loader says so, what tries is refused, and no message advises it."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diffpo.errors import UserError
from diffpo.models.encoders import Encoders
from diffpo.models.finding import find_model
from diffpo.models.load import load
from diffpo.models.pipelines import open_pipeline
from diffpo.models.tuning import Full

ROOT = Path(__file__).parents[2]
LOADERS = {"from_pretrained", "download", "load_dataset", "load"}
"""Names of methods and functions of others that open what somebody published."""
CANNOT = {
    "kind.from_pretrained": "a class of diffusers reads its own weights",
    "CLIPConfig.from_pretrained": "a class of transformers reads a JSON file",
    "datasets.load_dataset": "datasets knows no scripts since 4.0, the oldest version that is allowed",
}
"""Calls that load and have no code to run, and why."""


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def calls(source: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def offences(source: str) -> Iterator[str]:
    """Calls that could run code: lines and text."""
    for node in calls(source):
        name, remote, only = ast.unparse(node.func), keyword(node, "trust_remote_code"), keyword(node, "weights_only")
        refused = isinstance(remote, ast.Constant) and remote.value is False
        tensors = isinstance(only, ast.Constant) and only.value is True
        if remote is not None and not refused:
            yield f"{node.lineno}: {name} passes trust_remote_code={ast.unparse(remote)}"
        elif name == "torch.load" and not tensors:
            yield f"{node.lineno}: {name} without weights_only=True"
        elif name.split(".")[-1] in LOADERS - {"load"} and name not in CANNOT and not refused:
            yield f"{node.lineno}: {name} without trust_remote_code=False"
        elif name in {"torch.hub.load", "pickle.load", "pickle.loads", "joblib.load", "dill.load"}:
            yield f"{node.lineno}: {name} runs what it reads"


def test_every_loader_of_the_package_runs_no_code():
    found = []
    for path in sorted((ROOT / "diffpo").rglob("*.py")):
        found += [f"{path.relative_to(ROOT)}:{each}" for each in offences(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_there_is_one_place_that_loads_from_transformers():
    """It turns what transformers raises into messages that advise nothing."""
    files = [
        file for room in ("scorers", "captioners", "benchmarks") for file in (ROOT / "diffpo" / room).rglob("*.py")
    ]
    called = [(file.name, ast.unparse(call.func)) for file in files for call in calls(file.read_text())]
    assert [file for file, name in called if name.endswith(".from_pretrained")] == ["loading.py"]


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(p)",
        "getattr(transformers, name).from_pretrained(p, trust_remote_code=trusted)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.hub.load(p)",
        "pickle.loads(p)",
    ],
)
def test_the_reader_sees_what_could_run_code(source):
    assert len(list(offences(source))) == 1


def test_the_oldest_datasets_knows_no_scripts():
    assert '"datasets>=4' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.fixture
def attempts(pipelines, tmp_path):
    """Make a copy of a pipeline with something hidden in a part; return ways to load it and the mark of a success."""
    mark = tmp_path / "ran"

    def custom(folder: Path, part: str) -> None:
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {part: ["evil", "Evil"]}))
        code = f"open({str(mark)!r}, 'w')\nfrom transformers import CLIPTextModel as Evil\n"
        (folder / part / "evil.py").write_text(code)

    def pickled(folder: Path, part: str) -> None:
        (weights,) = (folder / part).glob("*.safetensors")
        name = "pytorch_model.bin" if part.startswith("text") else "diffusion_pytorch_model.bin"
        torch.save({"weight": Bomb(mark)}, folder / part / name)
        weights.unlink()

    def attempt(kind: str, part: str):
        folder = shutil.copytree(pipelines("sd15"), tmp_path / "model")
        {"custom": custom, "pickled": pickled}[kind](folder, part)
        tuning, model = Full(path=str(folder)), find_model(str(folder))
        return mark, {
            "train": lambda: load(tuning, torch.float32, False),
            "encode": lambda: Encoders(tuning, "cpu").encode_prompt("a"),
            "generate": lambda: open_pipeline(model, dtype=torch.float32, device="cpu"),
        }

    return attempt


@pytest.mark.parametrize(
    ("kind", "part", "ways"),
    [
        ("custom", "text_encoder", ["encode", "generate"]),
        ("custom", "unet", ["generate"]),
        ("pickled", "text_encoder", ["encode", "generate"]),
        ("pickled", "vae", ["encode", "generate"]),
        ("pickled", "unet", ["train", "generate"]),
    ],
)
def test_code_in_a_model_is_refused(attempts, kind, part, ways):
    """A user's error, whose message advises nothing of the kind."""
    mark, loaders = attempts(kind, part)
    for way in ways:
        with pytest.raises(UserError, match="cannot load") as caught:
            loaders[way]()
        assert not mark.exists()
        advice = ("trust_remote_code", "weights_only", "Re-running", "re-run")
        assert not any(word in str(caught.value) for word in advice), caught.value
