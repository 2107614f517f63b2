"""YAML to plain values: texts, lists, mappings and null. What a text means is for the field that it is given to.

So `mixed_precision: no` is the word, `path: 1e5` a name, and `learning_rate: 1e-6` a number, whatever a version of YAML
makes of them. What would take the memory or the time of the machine, or could be read in two ways, is refused:
documents beyond a size, nested too deeply, that refer to themselves or grow by references, and keys that stand twice.
"""

from pathlib import Path
from typing import Any

import yaml

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
        loader, nodes = _Composer(text), []
        while loader.check_node():
            nodes.append(loader.get_node())
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is no YAML: {error}") from error
    if len(nodes) > 1:
        raise ConfigError(f"{origin} holds {len(nodes)} documents; write one, without --- between its parts")
    return _Values(origin).of(nodes[0], 0) if nodes else None


def read_file(file: Path) -> Any:
    """Read a YAML file.

    Raises:
        ConfigError: It cannot be read, is not UTF-8, or as `read_yaml`.
    """
    return read_yaml(_text_of(file), str(file))


def read_saved(file: Path) -> Any:
    """Read a YAML file that a command wrote: numbers and truth values are what they were.

    Raises:
        ConfigError: As `read_file`.
    """
    text = _text_of(file, 2 * MOST_BYTES)  # what was written resolved is longer than what was given
    read_yaml(text, str(file))  # refuses what is no file of ours
    return yaml.safe_load(text)


def _text_of(file: Path, most: int = MOST_BYTES) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise ConfigError(f"{file} is larger than {most >> 10} KiB; keep long lists in files of their own")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file} is not UTF-8 (line {line}); save it as UTF-8") from error


class _Composer(yaml.SafeLoader):
    """A YAML parser that goes no deeper than allowed."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise yaml.YAMLError(f"values are nested more than {DEEPEST} deep (line {line})")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Values:
    """Makes the plain values of a document, and counts them with every reference written out."""

    def __init__(self, origin: str):
        self.origin = origin
        self.made = 0

    def of(self, node: yaml.Node, depth: int) -> Any:
        self.made += 1
        if depth > DEEPEST:
            raise self._refusal(node, " refers to itself, or nests too deeply", "; write it out")
        if self.made > MOST_VALUES:
            raise ConfigError(
                f"{self.origin} holds more than {MOST_VALUES:,} values, with every reference (*name) written out"
            )
        if not node.tag.startswith("tag:yaml.org,2002:") or "!" in node.tag or "python" in node.tag:
            raise self._refusal(node, f": the tag {node.tag} is not allowed", "; write plain values")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.of(child, depth + 1) for child in node.value]
        if half := next((each for each in node.value if "\ud800" <= each <= "\udfff"), None):
            raise self._refusal(node, f": {half!a} is half of a character", "; write the character itself")
        return None if node.style is None and node.value in NULLS else node.value

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
                parts = [self.of(part, depth + 1) for part in nodes]
                if not all(isinstance(part, dict) for part in parts):
                    raise self._refusal(key, ": << takes a block of keys")
                for part in parts:
                    merged = part | merged
                continue
            if not isinstance(key, yaml.ScalarNode) or self.of(key, depth + 1) is None:
                shown = key.value if isinstance(key, yaml.ScalarNode) and key.value else "empty"
                raise self._refusal(key, f": a key is a word; it is {shown}")
            if key.value in own:
                raise self._refusal(key, f": the key {key.value} stands twice", "; keep one of them")
            own[key.value] = self.of(value, depth + 1)
        return merged | own

    def _refusal(self, node: yaml.Node, told: str, advice: str = "") -> ConfigError:
        return ConfigError(f"{self.origin}{told} (line {node.start_mark.line + 1}){advice}")
