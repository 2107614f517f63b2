"""Who may import whom: reads every import and fails when a room of the package reaches where it must not.

Imports inside functions count, and those for type checkers, `importlib.import_module("x")`, `torch.cuda` written out.
A module that belongs to no room fails: put it into the table below, or into the room where it belongs.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = "types process noising objectives methods step"
NETWORKS = "diffusers transformers peft open_clip torchvision timm diffpo.denoisers diffpo.encoders"
TRAINING = "diffpo.train diffpo.run diffpo.learner diffpo.optimizers diffpo.checkpoint diffpo.export torch.optim"
LOSSES = "diffpo.methods diffpo.objectives diffpo.noising diffpo.step"
RIM = "diffpo.cli diffpo.cli_data diffpo.cli_judge diffpo.evaluate_config diffpo.evaluate_command diffpo.__main__"
DEVICES_AND_FILES = "os pathlib shutil tempfile io json torch.cuda torch.distributed torch.save torch.load"


@dataclass(frozen=True)
class Room:
    """The modules of one room (names below `diffpo`, a package stands for all in it) and what they may reach."""

    modules: str
    only: str | None = None
    """Packages that are all it may import, beside the standard library; None: anything."""
    never: str = ""
    """Packages, modules or names that it must not reach."""
    except_for: str = ""
    """What it may reach all the same, below something in `never`."""
    asks_names: bool = True
    """Whether it may compare a method's or a family's name with a string."""


ROOMS = {
    "errors": Room("errors", only=""),
    "compat": Room("compat", only="torch diffusers transformers"),
    "core": Room(
        CORE,
        only="torch diffpo.errors " + " ".join(f"diffpo.{name}" for name in CORE.split()),
        never=DEVICES_AND_FILES,
    ),
    "files": Room(
        "weights pipelines",
        never="datasets accelerate diffpo.data diffpo.config diffpo.denoisers diffpo.evaluate diffpo.scorers"
        f" {LOSSES} {TRAINING} {RIM}",
    ),
    "denoisers": Room(
        "denoisers encoders",
        never=f"datasets accelerate diffpo.data diffpo.config diffpo.evaluate diffpo.scorers {LOSSES} {TRAINING} {RIM}",
    ),
    "data": Room("data", never=f"accelerate diffpo.config diffpo.scorers {NETWORKS} {LOSSES} {TRAINING} {RIM}"),
    "training": Room(
        "train trajectories run learner parallel optimizers average samples checkpoint export log",
        never=f"datasets diffpo.methods diffpo.denoisers diffpo.objectives diffpo.noising {RIM}",
        except_for="diffpo.methods.base diffpo.methods.Method diffpo.methods.METHODS"
        " diffpo.denoisers.base diffpo.denoisers.Denoiser diffpo.denoisers.load diffpo.denoisers.reference"
        " diffpo.denoisers.tuning diffpo.noising.trajectory diffpo.noising.Inversion",
        asks_names=False,
    ),
    "judging": Room("scorers evaluate generate", never=f"diffpo.data {LOSSES} {TRAINING} {RIM}"),
    "captioners": Room("captioners", never=f"diffpo.data diffpo.config diffpo.denoisers {LOSSES} {TRAINING} {RIM}"),
    # The world and its builders: they know nothing of the package that learns on it.
    "shapes": Room(
        "shapes",
        only="torch numpy scipy PIL diffusers transformers tokenizers safetensors datasets pyarrow"
        " diffpo.shapes diffpo.errors diffpo.compat",
    ),
    "options": Room("options", never=f"{NETWORKS} {LOSSES} {TRAINING} {RIM}"),  # torch: `diffpo env` describes it
    "commands": Room(
        "config evaluate_config evaluate_command settings cli cli_data cli_judge demo __main__", never="torch numpy"
    ),
}


def room_of(module: str) -> str | None:
    """Name the room of `diffpo.a.b`; the package's own `__init__` stands with the errors: it imports nothing."""
    name = module.removeprefix("diffpo").removeprefix(".").split(".")[0]
    return next((title for title, room in ROOMS.items() if (name or "errors") in room.modules.split()), None)


def modules() -> dict[str, Path]:
    """Every module of the package: dotted name -> file."""
    found = {}
    for path in sorted((ROOT / "diffpo").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def reached(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of all that a module imports, anywhere in it, and of `torch.x.y` written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            first = node.args[0] if node.args else None
            known = isinstance(first, ast.Constant) and isinstance(first.value, str)
            yield node.lineno, first.value if known else "a name that only shows when it runs"
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            yield node.lineno, ast.unparse(node)


def names_asked(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, code) of comparisons of a method or a family with a string, `match` included."""

    def speaks_of_it(node: ast.AST) -> bool:
        return re.search(r"(?<![a-z])(method|family)(?![a-z])", ast.unparse(node), re.IGNORECASE) is not None

    def has_string(*nodes: ast.AST) -> bool:
        inside = (leaf for node in nodes for leaf in ast.walk(node))
        return any(isinstance(leaf, ast.Constant) and isinstance(leaf.value, str) for leaf in inside)

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and speaks_of_it(node) and has_string(node.left, *node.comparators):
            yield node.lineno, ast.unparse(node)
        elif (
            isinstance(node, ast.Match) and speaks_of_it(node.subject) and has_string(*(c.pattern for c in node.cases))
        ):
            yield node.lineno, f"match {ast.unparse(node.subject)}"


def below(name: str, prefixes: str) -> bool:
    """Tell whether `name` is one of the space-separated `prefixes`, or lies below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes.split())


def offences(room: Room, source: str, module: str, is_package: bool = False) -> list[str]:
    """List where a module's source breaks its room's rules, as `line: what`."""
    tree = ast.parse(source)
    found = []
    for line, name in reached(tree, module, is_package):
        top = name.split(".")[0]
        foreign = room.only is not None and not below(name, room.only) and top not in sys.stdlib_module_names
        if foreign or (below(name, room.never) and not below(name, room.except_for)):
            found.append(f"{line}: reaches {name}")
    if not room.asks_names:
        found += [f"{line}: asks for a name: {code}" for line, code in names_asked(tree)]
    return found


def test_every_module_has_a_room():
    homeless = [module for module in modules() if room_of(module) is None]
    assert len(modules()) > 10, "the package was not found"
    assert not homeless, f"put these into ROOMS: {homeless}"


@pytest.mark.parametrize("title", ROOMS)
def test_no_room_reaches_where_it_must_not(title):
    found = []
    for module, path in modules().items():
        if room_of(module) == title:
            source = path.read_text(encoding="utf-8")
            broken = offences(ROOMS[title], source, module, is_package=path.name == "__init__.py")
            found += [f"{path.relative_to(ROOT)}:{offence}" for offence in broken]
    assert not found, f"the room '{title}' reaches too far:\n" + "\n".join(found)


def unguarded(source: str) -> list[str]:
    """List imports on a module's top level that need `ensure_torchvision()` above them and have it not."""
    found, guarded = [], False
    for node in ast.parse(source).body:
        guarded = guarded or (isinstance(node, ast.Expr) and ast.unparse(node) == "ensure_torchvision()")
        if isinstance(node, ast.Import | ast.ImportFrom) and not guarded:
            names = (name for _, name in reached(node, "diffpo.module", False))
            found += [
                f"{node.lineno}: {name}" for name in names if below(name, "diffusers transformers peft open_clip")
            ]
    return found


def test_torchvision_is_made_safe_before_anything_imports_it():
    """Each module works as the first that is imported; `diffpo.denoisers` guards the modules below it."""
    found = []
    for module, path in modules().items():
        if path.name == "__init__.py" or not below(module, "diffpo.denoisers"):
            found += [f"{path.relative_to(ROOT)}:{line}" for line in unguarded(path.read_text(encoding="utf-8"))]
    assert not found, "call diffpo.compat.ensure_torchvision() above:\n" + "\n".join(found)


def test_the_reader_sees_an_unguarded_import():
    assert unguarded("import torch\nfrom diffusers.training_utils import EMAModel")
    assert unguarded("import transformers\nensure_torchvision()")
    assert not unguarded("ensure_torchvision()\nimport diffusers")
    assert not unguarded("import accelerate\ndef f():\n    import diffusers")


BAD = [
    ("errors", "import torch"),
    ("compat", "from diffpo.config import Config"),
    ("core", "import numpy as np"),
    ("core", "from pathlib import Path"),
    ("core", "def f():\n    from diffpo.denoisers.unet import UNet"),
    ("core", "import torch\ntorch.cuda.synchronize()"),
    ("core", "import importlib\nimportlib.import_module('transformers')"),
    ("core", "import importlib\nimportlib.import_module(name)"),
    ("core", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from diffpo.config import Config"),
    ("denoisers", "from diffpo.methods import DPO"),
    ("files", "from diffpo.denoisers.load import find_base"),
    ("denoisers", "import torch\noptimizer = torch.optim.AdamW"),
    ("data", "class A:\n    def f(self):\n        import diffusers.models"),
    ("data", "from ..encoders import Encoders"),
    ("data", "from diffpo import encoders"),
    ("training", "from diffpo.methods.dpo import DPO"),
    ("training", "from diffpo.methods import DPO"),
    ("training", "import diffpo.denoisers.unet"),
    ("training", "x = 1 if config.method.name == 'dpo' else 2"),
    ("training", "if 'sd3' in (family, other):\n    pass"),
    ("training", "if model_family in {'sd3', 'flux'}:\n    pass"),
    ("training", "match type(method).__name__:\n    case 'DPO':\n        pass"),
    ("judging", "from diffpo.train import train"),
    ("judging", "from diffpo import objectives"),
    ("captioners", "from diffpo.data.captions import caption_pairs"),
    ("captioners", "def f():\n    from diffpo.config import validate"),
    ("shapes", "from diffpo.train import train"),
    ("shapes", "from diffpo.denoisers.load import load"),
    ("options", "from diffpo.denoisers.load import load"),
    ("commands", "def f():\n    import torch"),
]

GOOD = [
    ("errors", "import sys"),
    (
        "core",
        "from __future__ import annotations\nimport math\nfrom torch.nn import functional\nfrom ..types import Pair",
    ),
    ("denoisers", "import torch, diffusers\nfrom diffpo.process import NoiseProcess\ntorch.optimize = 1"),
    ("data", "import datasets, torch\nfrom diffpo.types import PairBatch\nfrom .records import Source"),
    (
        "training",
        "from diffpo.methods import METHODS, Method\nfrom diffpo.denoisers.load import load\nimport torch.optim",
    ),
    ("training", "if method.needs_reference and mode == 'x':\n    pass"),
    ("judging", "import diffusers, transformers\nfrom diffpo.shapes.verify import verify"),
    ("captioners", "import transformers\nfrom diffpo.shapes.verify import see\nfrom diffpo.weights import locate"),
    ("shapes", "import numpy, torch\nfrom .scenes import Scene"),
    ("commands", "from diffpo.methods import METHODS\nfrom diffpo.train import train"),
]


@pytest.mark.parametrize(("title", "source"), BAD)
def test_the_reader_sees_a_room_that_reaches_too_far(title, source):
    assert offences(ROOMS[title], source, "diffpo.room.module")


@pytest.mark.parametrize(("title", "source"), GOOD)
def test_the_reader_lets_a_room_do_its_work(title, source):
    assert offences(ROOMS[title], source, "diffpo.data.module" if title == "data" else f"diffpo.{title}.module") == []


def test_every_room_has_a_bad_example():
    assert {title for title, _ in BAD} == set(ROOMS)
