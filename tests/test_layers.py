"""Who may import whom: reads every import and fails when a room of the package reaches where it must not.

`ROOMS` stands in order, the lowest floor first: a room imports from itself and from rooms above it in the table, never
from one below. So no two rooms can import each other, and no circle can form. Imports inside functions count, and those
for type checkers, `importlib.import_module("x")`, `torch.cuda` written out. A module that belongs to no room fails: put
it into the room where it belongs.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NETWORKS = "diffusers transformers peft open_clip torchvision timm"
DEVICES_AND_FILES = "os pathlib shutil tempfile io json torch.cuda torch.distributed torch.save torch.load"
MODULES_AT_THE_TOP = 5


@dataclass(frozen=True)
class Room:
    """What one room, a folder or a module of that name below `diffpo`, may reach besides the rooms above it."""

    only: str | None = None
    """Packages that are all it may import, beside the standard library; None: anything."""
    never: str = ""
    """Packages, modules or names that it must not reach."""
    except_for: str = ""
    """What it may reach all the same, below something in `never`."""
    asks_names: bool = True
    """Whether it may compare a method's or a family's name with a string."""


ROOMS = {
    "errors": Room(only=""),
    "compat": Room(only="torch diffusers transformers diffpo"),
    # The worlds know nothing of the package that learns on them.
    "worlds": Room(only="torch numpy scipy PIL diffpo"),
    "disk": Room(never=f"{NETWORKS} accelerate"),
    "core": Room(only="torch diffpo.errors diffpo.core", never=DEVICES_AND_FILES),
    "methods": Room(only="torch diffpo.errors diffpo.core diffpo.methods", never=DEVICES_AND_FILES),
    "media": Room(never=f"{NETWORKS} diffpo.methods diffpo.core.objectives diffpo.core.step torch.nn"),
    "models": Room(never="datasets accelerate torch.optim diffpo.methods diffpo.core.objectives diffpo.core.step"),
    "scorers": Room(
        never="datasets accelerate torch.optim diffpo.models diffpo.core.step diffpo.methods",
        except_for="accelerate.init_empty_weights",
    ),
    "captioners": Room(never="datasets accelerate torch.optim diffpo.models diffpo.core.step diffpo.methods"),
    "data": Room(
        never=f"accelerate {NETWORKS} diffpo.models diffpo.scorers diffpo.captioners diffpo.methods"
        " diffpo.core.objectives diffpo.core.step diffpo.core.noising diffpo.core.inversion"
    ),
    "curate": Room(
        never=f"accelerate {NETWORKS} diffpo.models diffpo.methods diffpo.captioners diffpo.core.objectives"
        " diffpo.core.step diffpo.core.noising diffpo.core.inversion",
        except_for="diffpo.captioners.base",
    ),
    "compare": Room(never=f"torch {NETWORKS} diffpo.core diffpo.methods diffpo.models diffpo.data diffpo.curate"),
    "benchmarks": Room(never="diffpo.methods diffpo.models diffpo.data diffpo.curate diffpo.core.step"),
    "report": Room(never=f"torch {NETWORKS} diffpo.core diffpo.methods diffpo.models diffpo.data diffpo.curate"),
    "generation": Room(never="datasets torch.optim diffpo.methods diffpo.data diffpo.curate diffpo.core.step"),
    "config": Room(never="torch numpy"),
    "training": Room(
        never="datasets diffpo.methods diffpo.models diffpo.core.objectives diffpo.core.noising diffpo.core.inversion"
        " diffpo.scorers diffpo.compare diffpo.report diffpo.benchmarks diffpo.curate",
        except_for="diffpo.models.base diffpo.models.Denoiser diffpo.models.load diffpo.models.reference"
        " diffpo.models.bases diffpo.models.tuning diffpo.models.encoders diffpo.models.finding"
        " diffpo.models.outline diffpo.models.recomputing"
        " diffpo.models.peft_folder diffpo.models.user_files diffpo.models.user_adapter.is_adapters"
        " diffpo.core.inversion.trajectory diffpo.core.inversion.Inversion",
        asks_names=False,
    ),
    "commands": Room(never="torch numpy"),
    "__main__": Room(never="torch numpy"),
}
FLOORS = {title: floor for floor, title in enumerate(ROOMS)}


def room_of(module: str) -> str | None:
    """Name the room of `diffpo.a.b`; the package's own `__init__` stands with the errors: it imports nothing."""
    name = module.removeprefix("diffpo").removeprefix(".").split(".")[0] or "errors"
    return name if name in ROOMS else None


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
    floor = FLOORS[room_of(module) or "__main__"]
    for line, name in reached(tree, module, is_package):
        top, other = (
            name.split(".")[0],
            room_of(name) if below(name, "diffpo") and name != "diffpo.__version__" else None,
        )
        if other is not None and FLOORS[other] > floor:
            found.append(f"{line}: reaches up to {name}")
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
    """Each module works as the first that is imported; `diffpo.models` guards the modules below it."""
    found = []
    for module, path in modules().items():
        if path.name == "__init__.py" or not below(module, "diffpo.models"):
            found += [f"{path.relative_to(ROOT)}:{line}" for line in unguarded(path.read_text(encoding="utf-8"))]
    assert not found, "call diffpo.compat.ensure_torchvision() above:\n" + "\n".join(found)


def test_the_reader_sees_an_unguarded_import():
    assert unguarded("import torch\nfrom diffusers.training_utils import EMAModel")
    assert unguarded("import transformers\nensure_torchvision()")
    assert not unguarded("ensure_torchvision()\nimport diffusers")
    assert not unguarded("import accelerate\ndef f():\n    import diffusers")


BAD = [
    ("errors", "import torch"),
    ("compat", "from diffpo.config.run import Config"),
    ("worlds", "from diffpo.training.train import train"),
    ("worlds", "from diffpo.models.load import load"),
    ("worlds", "import diffusers"),
    ("disk", "from diffpo.media.folder import Media"),
    ("disk", "import accelerate"),
    ("core", "import numpy as np"),
    ("core", "from pathlib import Path"),
    ("core", "def f():\n    from diffpo.models.unet import UNet"),
    ("core", "from diffpo.methods.base import TwoSidedMethod"),
    ("core", "import torch\ntorch.cuda.synchronize()"),
    ("core", "import importlib\nimportlib.import_module('transformers')"),
    ("core", "import importlib\nimportlib.import_module(name)"),
    ("core", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from diffpo.config.run import Config"),
    ("methods", "import json"),
    ("methods", "from diffpo.models.base import Denoiser"),
    ("media", "import diffusers"),
    ("media", "from diffpo.report.grid import write_grid"),
    ("media", "from diffpo.data.read import read_table"),
    ("models", "from diffpo.methods import DPO"),
    ("models", "import torch\noptimizer = torch.optim.AdamW"),
    ("models", "import datasets"),
    ("models", "from diffpo.generation.sampling import sample_clips"),
    ("scorers", "from diffpo.training.train import train"),
    ("scorers", "from diffpo.models.load import load"),
    ("captioners", "from diffpo.curate.caption import caption_pairs"),
    ("captioners", "def f():\n    from diffpo.config.run import validate"),
    ("data", "class A:\n    def f(self):\n        import diffusers.models"),
    ("data", "from ..models.encoders import Encoders"),
    ("data", "from diffpo.curate.inspect import inspect"),
    ("data", "from diffpo.scorers import SCORERS"),
    ("curate", "from diffpo.methods import METHODS"),
    ("curate", "from diffpo.generation.generate import generate"),
    ("compare", "import torch"),
    ("compare", "from diffpo.report.page import write_report"),
    ("benchmarks", "from diffpo.models.load import load"),
    ("report", "from diffpo.data.records import Table"),
    ("report", "from diffpo.generation.generate import generate"),
    ("generation", "from diffpo.config.run import Config"),
    ("generation", "from diffpo.methods import METHODS"),
    ("config", "from diffpo.training.train import train"),
    ("config", "def f():\n    import torch"),
    ("training", "from diffpo.methods.dpo import DPO"),
    ("training", "from diffpo.methods import DPO"),
    ("training", "import diffpo.models.unet"),
    ("training", "from diffpo.compare.compare import compare"),
    ("training", "from diffpo.commands.demo import run_demo"),
    ("training", "x = 1 if config.method.name == 'dpo' else 2"),
    ("training", "if 'sd3' in (family, other):\n    pass"),
    ("training", "if model_family in {'sd3', 'flux'}:\n    pass"),
    ("training", "match type(method).__name__:\n    case 'DPO':\n        pass"),
    ("commands", "def f():\n    import torch"),
    ("__main__", "import numpy"),
]

GOOD = [
    ("errors", "import sys"),
    (
        "core",
        "from __future__ import annotations\nimport math\nfrom torch.nn import functional\nfrom .types import Pair",
    ),
    ("methods", "from diffpo.core.types import Pair"),
    ("models", "import torch, diffusers\nfrom diffpo.core.process import NoiseProcess\ntorch.optimize = 1"),
    ("data", "import datasets, torch\nfrom diffpo.core.types import PairBatch\nfrom .records import Source"),
    ("training", "from diffpo.models.load import load\nimport torch.optim"),
    ("training", "if method.needs_reference and mode == 'x':\n    pass"),
    ("scorers", "import transformers\nfrom diffpo.worlds.shapes.verify import verify"),
    (
        "captioners",
        "import transformers\nfrom diffpo.worlds.shapes.verify import see\nfrom diffpo.disk.weights import locate",
    ),
    ("worlds", "import numpy, torch\nfrom .scenes import Scene"),
    ("commands", "from diffpo.methods import METHODS\nfrom diffpo.training.train import train"),
]


@pytest.mark.parametrize(("title", "source"), BAD)
def test_the_reader_sees_a_room_that_reaches_too_far(title, source):
    assert offences(ROOMS[title], source, f"diffpo.{title}.module")


@pytest.mark.parametrize(("title", "source"), GOOD)
def test_the_reader_lets_a_room_do_its_work(title, source):
    assert offences(ROOMS[title], source, f"diffpo.{title}.module") == []


def test_every_room_has_a_bad_example():
    assert {title for title, _ in BAD} == set(ROOMS)


def test_few_modules_stand_at_the_top():
    assert len(list((ROOT / "diffpo").glob("*.py"))) <= MODULES_AT_THE_TOP
