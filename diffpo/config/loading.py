"""From a file and overrides to a checked configuration: `a.b=c` sets a field, `method=sft` chooses another block.

Precedence: the code's defaults < YAML < overrides. All mistakes of all blocks are reported at once, each with its key
and close matches, before anything heavy loads.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from diffpo.config.blocks import Builder, Named, default_of, note, parse_spec, to_plain
from diffpo.config.names import close_match
from diffpo.core.block import Block, hints_of
from diffpo.disk.plain import read_file, read_yaml
from diffpo.errors import ConfigError


class Document(Block):
    """A whole configuration: what one YAML file holds."""

    output_in: ClassVar[str | None] = None
    """The block that has the key `output`; None: it stands at the top."""

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, apply overrides, and validate all of it; without an `output` it is `runs/<name of file>`.

        Args:
            path: A YAML file, or the name of a packaged one, such as `configs/shapes-dpo.yaml`.
            overrides: Such as `method.beta=2000` (a field), `method=sft` (another block), `data.cache=false`.

        Raises:
            ConfigError: The file is missing, or values are wrong; the message lists every mistake.
        """
        file = find_config(path)
        tree = read_file(file)
        if not isinstance(tree, dict):
            needed = [f.name for f in dataclasses.fields(cls) if default_of(f) is dataclasses.MISSING]
            keys = f"the keys {', '.join(name for name in needed if name != 'output')}"
            if tree is None:
                raise ConfigError(f"{file} is empty; it should hold {keys}")
            raise ConfigError(f"{file} should hold {keys}; it holds a {type(tree).__name__}")
        override(tree, overrides, cls)
        place = tree.setdefault(cls.output_in, {}) if cls.output_in else tree
        if isinstance(place, dict) and place.get("output") is None:
            place["output"] = f"runs/{file.stem}"
        return cls.build(tree, str(path))

    @classmethod
    def build(cls, tree: Any, origin: str = "the configuration") -> Self:
        """Validate plain values; `origin` says where they come from.

        Raises:
            ConfigError: Lists every mistake of every block.
        """
        builder = Builder(cls)
        made = builder.block(cls, tree, "")
        mistakes = builder.mistakes or made.clashes()
        if mistakes:
            lines = "\n".join(f"  {mistake}" for mistake in mistakes)
            raise ConfigError(f"{origin}: {len(mistakes)} mistake(s)\n{lines}")
        return made

    def clashes(self) -> list[str]:
        """Find values that are right alone and wrong together."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved tree, blocks with their names, as YAML would hold it."""
        return to_plain(self)


def find_config(path: str | Path) -> Path:
    """Find a config file: as given, else among the packaged ones, which the message lists where there is none."""
    given = Path(path)
    try:
        if given.is_file():
            return given
        if given.exists():
            raise ConfigError(f"{path} is no file; give the YAML file of a configuration")
    except (OSError, ValueError) as error:  # a name too long, or with a zero in it
        raise ConfigError(f"no config at {str(path)[:100]!r}: {error}") from error
    folders = [Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs"]
    for folder in folders:
        if (folder / given.name).is_file() and given.parent in (Path("configs"), Path(".")):
            return folder / given.name
    known = sorted({f"configs/{f.name}" for folder in folders for f in folder.glob("*.yaml")})
    raise ConfigError(f"no config at {path}.{close_match(str(path), known)} Packaged are {', '.join(known)}")


def override(tree: dict[str, Any], overrides: Sequence[str], cls: type) -> None:
    """Change a tree of plain values in place; the named blocks of `cls` may be chosen anew."""
    named = {key: found for key, hint in hints_of(cls).items() if (found := note(hint, Named)) is not None}
    for each in overrides:
        path, sign, text = each.partition("=")
        keys = path.split(".")
        if not sign or not all(keys):
            raise ConfigError(f"override {each!r} should look like method.beta=2000")
        value = read_yaml(text, f"override {each!r}: {text}")
        if len(keys) == 1 and keys[0] in named and isinstance(value, str):
            tree[keys[0]] = _chosen(named[keys[0]], tree.get(keys[0]), value)
            continue
        node = tree
        for key in keys[:-1]:
            if node is tree and key in named and isinstance(tree.get(key), str):
                tree[key] = parse_spec(tree[key], named[key])
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {each!r}: {key} is no block of keys")
        node[keys[-1]] = value


def _chosen(named: Named, block: Any, spec: str) -> dict[str, Any]:
    """Replace a block by another of that name; a model or source keeps the fields that both have, such as its path."""
    given = parse_spec(spec, named)
    cls = named.known.get(given["name"])
    if not named.keeps or cls is None or not isinstance(block, dict):
        return given
    shared = {field.name for field in dataclasses.fields(cls)}
    return {key: value for key, value in block.items() if key in shared} | given
