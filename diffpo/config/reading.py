"""YAML to plain values: texts, lists, mappings and null. What a text means is for the field that it is given to.

So `mixed_precision: no` is the word, `path: 1e5` a name, and `learning_rate: 1e-6` a number, whatever a version of YAML
makes of them. What would take the memory or the time of the machine, or could be read in two ways, is refused:
documents beyond a size, nested too deeply, that refer to themselves or grow by references, and keys that stand twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from diffpo.config.names import close_match
from diffpo.errors import ConfigError

MOST_BYTES = 1 << 17
DEEPEST = 30
MOST_VALUES = 20_000
"""With every reference written out."""
NULLS = ("", "~", "null", "Null", "NULL")


def read_yaml(text: str, origin: str) -> Any:
    """Read one YAML document.

    Args:
        text: The document.
        origin: Where it comes from, for messages.

    Raises:
        ConfigError: It is no YAML, or one of the things that are refused.
    """
    try:
        nodes = _Composer(text).nodes()
        size = _Size(origin)
        for node in nodes:
            size.of(node, 0)
        if len(nodes) > 1:
            raise ConfigError(f"{origin} holds {len(nodes)} documents; write one, without --- between its parts")
        return _value(nodes[0], origin) if nodes else None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is no YAML: {error}") from error


def read_file(file: Path) -> Any:
    """Read a YAML file.

    Raises:
        ConfigError: It cannot be read, is not UTF-8, or as `read_yaml`.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{file} is larger than {MOST_BYTES >> 10} KiB; keep long lists in files of their own")
    try:
        return read_yaml(content.decode("utf-8-sig"), str(file))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file} is not UTF-8 (line {line}); save it as UTF-8") from error


def read_tree(path: str | Path, keys: str) -> tuple[Path, dict[str, Any]]:
    """Read a configuration file; `keys` says what it should hold.

    Raises:
        ConfigError: The file is missing or holds no keys.
    """
    file = find_config(path)
    tree = read_file(file)
    if tree is None:
        raise ConfigError(f"{file} is empty; it should hold the keys {keys}")
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} should hold the keys {keys}; it holds a {type(tree).__name__}")
    return file, tree


def find_config(path: str | Path) -> Path:
    """Find a config file: as given, else among the packaged ones.

    Raises:
        ConfigError: It does not exist; the message lists the packaged ones.
    """
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


class _Composer(yaml.SafeLoader):
    """A YAML parser that goes no deeper than allowed."""

    depth = 0

    def nodes(self) -> list[yaml.Node]:
        found = []
        while self.check_node():
            found.append(self.get_node())
        return found

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise yaml.YAMLError(f"values are nested more than {DEEPEST} deep (line {line})")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Size:
    """Counts the values of a document as if every reference were written out."""

    def __init__(self, origin: str):
        self.origin = origin
        self.known: dict[int, int] = {}
        self.open: set[int] = set()

    def of(self, node: yaml.Node, depth: int) -> int:
        if id(node) in self.open or depth > DEEPEST:
            raise ConfigError(f"{self.origin} refers to itself, or nests too deeply ({_line(node)}); write it out")
        if id(node) not in self.known:
            self.open.add(id(node))
            self.known[id(node)] = 1 + sum(self.of(child, depth + 1) for child in _children(node))
            self.open.remove(id(node))
        if self.known[id(node)] > MOST_VALUES:
            raise ConfigError(
                f"{self.origin} holds more than {MOST_VALUES:,} values, with every reference (*name) written out"
            )
        return self.known[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _value(node: yaml.Node, origin: str) -> Any:
    """Make plain values of a node."""
    if not node.tag.startswith("tag:yaml.org,2002:") or ("!" in node.tag) or "python" in node.tag:
        raise ConfigError(f"{origin}: the tag {node.tag} is not allowed ({_line(node)}); write plain values")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, origin)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, origin) for child in node.value]
    return None if node.style is None and node.value in NULLS else node.value


def _mapping(node: yaml.MappingNode, origin: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not all(isinstance(part, yaml.MappingNode) for part in parts):
                raise ConfigError(f"{origin}: << takes a block of keys ({_line(key)})")
            for part in parts:
                merged = _mapping(part, origin) | merged
            continue
        if not isinstance(key, yaml.ScalarNode) or _value(key, origin) is None:
            shown = key.value if isinstance(key, yaml.ScalarNode) and key.value else "empty"
            raise ConfigError(f"{origin}: a key is a word; it is {shown} ({_line(key)})")
        if key.value in own:
            raise ConfigError(f"{origin}: the key {key.value} stands twice ({_line(key)}); keep one of them")
        own[key.value] = _value(value, origin)
    return merged | own
