"""Configurations: frozen dataclasses, read from YAML and `a.b=c` overrides, checked before anything heavy loads.

`method`, `data` and `model` are blocks `{name: ..., ...}`: the name picks a dataclass from a plain dict, which then
validates the rest of the block alone. Precedence: the code's defaults < YAML < overrides. All mistakes of all blocks
are reported at once, each with its key and close matches.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from diffpo.config.settings import Sample, Train
from diffpo.core.block import Block
from diffpo.data import SOURCES
from diffpo.data.records import Source
from diffpo.errors import ConfigError
from diffpo.methods import METHODS, Method
from diffpo.models.tuning import MODELS, Tuning

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Config(Block):
    """One run."""

    model: Tuning
    method: Method
    data: Source
    train: Train
    sample: Sample = field(default_factory=Sample)

    @property
    def method_name(self) -> str:
        """The method's name in `METHODS`."""
        return next(name for name, cls in METHODS.items() if cls is type(self.method))

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved tree, blocks with their names, as YAML would hold it."""
        tree = dataclasses.asdict(self)
        for key, table in BLOCKS.items():
            block = getattr(self, key)
            name = next(name for name, cls in table.items() if cls is type(block))
            tree[key] = {"name": name} | tree[key]
        return _plain(tree)


BLOCKS: dict[str, Mapping[str, type]] = {"model": MODELS, "method": METHODS, "data": SOURCES}
SECTIONS: dict[str, type] = {"train": Train, "sample": Sample}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b=c` overrides, and validate all of it.

    Args:
        path: A YAML file, or the name of a packaged one, such as `configs/shapes-dpo.yaml`.
        overrides: Such as `method.beta=2000` (a field), `method=sft` (another block), `data.cache=false`.

    Raises:
        ConfigError: The file is missing, or values are wrong; the message lists every mistake.
    """
    file, tree = read_tree(path, overrides, f"{', '.join(BLOCKS)}, train")
    tree.setdefault("train", {})
    if isinstance(tree["train"], dict) and tree["train"].get("output") is None:
        tree["train"]["output"] = f"runs/{file.stem}"
    return build(tree, str(path))


def read_tree(path: str | Path, overrides: Sequence[str], keys: str) -> tuple[Path, dict[str, Any]]:
    """Read a YAML file and apply overrides; `keys` says what it should hold.

    Raises:
        ConfigError: The file is missing or no tree, or an override is none.
    """
    file = find_config(path)
    try:
        tree = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} should hold the keys {keys}; it holds a {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return file, tree


def find_config(path: str | Path) -> Path:
    """Find a config file: as given, else among the packaged ones.

    Raises:
        ConfigError: It does not exist; the message lists the packaged ones.
    """
    given = Path(path)
    if given.is_file():
        return given
    folders = [Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs"]
    for folder in folders:
        if (folder / given.name).is_file() and given.parent in (Path("configs"), Path(".")):
            return folder / given.name
    known = sorted({f"configs/{f.name}" for folder in folders for f in folder.glob("*.yaml")})
    raise ConfigError(f"no config at {path}.{close_match(str(path), known)} Packaged are {', '.join(known)}")


def build(tree: Mapping[str, Any], origin: str = "the configuration") -> Config:
    """Validate a tree of plain values.

    Raises:
        ConfigError: Lists every mistake of every block.
    """
    mistakes, parts = [], {}
    known = [*BLOCKS, *SECTIONS]
    strange = [key for key in tree if key not in known]
    mistakes += [f"{key}: unknown key.{close_match(key, known)} Allowed are {', '.join(known)}" for key in strange]
    for key in known:
        value = tree.get(key, {})
        if not isinstance(value, dict):
            mistakes.append(f"{key}: should be a block of keys, not {value!r}")
            continue
        cls, rest = SECTIONS.get(key), dict(value)
        if key in BLOCKS:
            name = rest.pop("name", None)
            cls = BLOCKS[key].get(name) if isinstance(name, str) else None
            if cls is None:
                close = close_match(str(name), BLOCKS[key]) if name else ""
                given = "is missing" if name is None else f"is {name!r}"
                mistakes.append(f"{key}.name: {given}.{close} Allowed are {', '.join(BLOCKS[key])}")
                continue
        assert cls is not None
        parts[key] = validate(cls, rest, key, mistakes)
    mistakes += _clashes(parts) if not mistakes else []
    if mistakes:
        raise ConfigError(f"{origin}: {len(mistakes)} mistake(s)\n" + "\n".join(f"  {m}" for m in mistakes))
    return Config(**parts)


def validate(cls: type[T], given: Mapping[str, Any], where: str, mistakes: list[str]) -> T:
    """Make one dataclass from plain values; what is wrong is appended to `mistakes` (and None returned)."""
    given = _with_defaults(cls, given)
    texts = {
        f.name for f in dataclasses.fields(cls) if re.search(r"\b(str|Place)\b", str(f.type))
    }  # a folder may be named 1e-5
    try:
        return TypeAdapter(cls).validate_python({k: v if k in texts else _lenient(v) for k, v in given.items()})
    except ValidationError as error:
        mistakes += [_describe(where, cls, e) for e in error.errors()]
    except ConfigError as error:  # pydantic wraps ValueErrors of __post_init__ only at the top of a tree
        mistakes.append(f"{where}: {error}")
    return None  # pyright: ignore[reportReturnType]


def _with_defaults(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Let a block inside a block, of which some fields are given, keep the others as the class around it has them."""
    filled = dict(given)
    for f in dataclasses.fields(cls):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if dataclasses.is_dataclass(default) and isinstance(filled.get(f.name), dict):
            filled[f.name] = dataclasses.asdict(default) | filled[f.name]  # pyright: ignore[reportArgumentType]
    return filled


def _clashes(parts: Mapping[str, Any]) -> list[str]:
    """Find values that are right alone and wrong together."""
    model, method, train = parts["model"], parts["method"], parts["train"]
    half = {"fp16": "float16", "bf16": "bfloat16"}.get(train.mixed_precision)
    clashes = []
    if model.dtype in ("float16", "bfloat16") and model.dtype != half:
        clashes.append(
            f"model.dtype: {model.dtype} weights beside {train.dtype} ones need the same train.mixed_precision"
            f" ({'fp16' if model.dtype == 'float16' else 'bf16'}; it is {train.mixed_precision})"
        )
    if train.dtype == "float64" and (half or model.dtype not in (None, "float64")):
        clashes.append("train.dtype: float64 goes with mixed_precision=no and model.dtype left out")
    if train.sample_every and not parts["sample"].prompts:
        clashes.append("train.sample_every: nothing would be drawn; give sample.prompts, or sample_every=0")
    held_out = (parts["data"].validation_path, parts["data"].validation_split, parts["data"].validation_fraction)
    if train.eval_every and not any(held_out):
        clashes.append(
            "train.eval_every: there are no held-out pairs; give data.validation_path, validation_split or "
            "validation_fraction, or eval_every=0"
        )
    if method.cached_inversion is not None and not parts["data"].cache:
        clashes.append("method.inversion.cache: lies beside the encodings, so it needs data.cache=true")
    if method.needs_reference and getattr(model, "dropout", 0.0) > 0:
        clashes.append("model.dropout: must be 0 for a method with a reference, which would see another network")
    return clashes


def _override(tree: dict[str, Any], override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise ConfigError(f"override {override!r} should look like method.beta=2000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: {text} is no YAML value") from error
    keys = path.split(".")
    if len(keys) == 1 and keys[0] in BLOCKS and isinstance(value, str):
        tree[keys[0]] = _renamed(keys[0], tree.get(keys[0]), value)
        return
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {key} is no block of keys")
    node[keys[-1]] = value


def _renamed(key: str, block: Any, name: str) -> dict[str, Any]:
    """Replace a block by another of that name; a model or source keeps the fields that both have, such as its path."""
    if key == "method" or not isinstance(block, dict) or name not in BLOCKS[key]:
        return {"name": name}
    shared = {f.name for f in dataclasses.fields(BLOCKS[key][name])}
    return {"name": name} | {k: v for k, v in block.items() if k in shared}


def _lenient(value: Any) -> Any:
    """Read what YAML 1.1 leaves a string although a person wrote a number, such as 1e-6."""
    if isinstance(value, dict):
        return {k: _lenient(v) for k, v in value.items()}
    if isinstance(value, str):
        try:
            return float(value) if any(c in value for c in "eE") and value[:1] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def _describe(key: str, cls: type, error: Any) -> str:
    where = ".".join([key, *(str(part) for part in error["loc"])])
    allowed = [f.name for f in dataclasses.fields(cls)]
    if error["type"] == "unexpected_keyword_argument":
        name = str(error["loc"][-1])
        if len(error["loc"]) > 1:
            return f"{where}: unknown key"
        names = ["name"] * (key in BLOCKS) + allowed
        return f"{where}: unknown key.{close_match(name, allowed)} Allowed are {', '.join(names)}"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where}: is missing"
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return f"{key}: {message}"
    return f"{where}: {message[0].lower()}{message[1:]} (given {error['input']!r})"


def close_match(name: str, known: Any) -> str:
    """A question for the end of a message: which known name is meant."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
