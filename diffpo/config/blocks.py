"""The one builder of configuration blocks: plain values -> frozen dataclasses, with every mistake at once.

A block is a dataclass; what a field may hold is its type. Two notes may stand beside a type:

    method: Annotated[Method, Named(METHODS, "method")]        {name: dpo, beta: 2000}, or just: dpo,beta=2000
    models: Mapping[str, Annotated[JudgedModel, Short("path")]]    a bare text stands for {path: text}

Of a block inside a block that has a default, fields may be left out: they are as in that default.
"""

import dataclasses
import re
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from diffpo.config.names import close_match, synonym
from diffpo.config.values import kinds, read_value
from diffpo.core.block import Named as Named
from diffpo.core.block import hints_of, out_of_range
from diffpo.disk.plain import read_yaml
from diffpo.errors import UserError

T = TypeVar("T")
_WRONG: Any = object()


@dataclasses.dataclass(frozen=True)
class Short:
    """Beside a type: a bare text stands for the block with this one key."""

    key: str
    advice: str
    """What to write, for messages."""


def make(hint: Any, given: Any, where: str) -> Any:
    """Make a block, a named block or a value of plain values; messages call it `where`.

    Raises:
        UserError: Lists every mistake.
    """
    builder = Builder()
    made = builder.value(hint, given, where)
    if builder.mistakes:
        raise UserError("\n".join(builder.mistakes))
    return made


def parse_spec(spec: str, named: Named) -> dict[str, Any]:
    """Read `name` or `name,key=value,...` into the plain values of a named block.

    A comma begins an option only where a key and = follow, so texts may hold commas.
    """
    name, *options = re.split(r",(?=\s*\w+\s*=)", spec)
    if name not in named.known and name.partition(",")[0] in named.known:
        name, _, option = name.partition(",")
        raise UserError(f"{named.what} option {option!r} should look like key=value, as in {name},key=value")
    hints = hints_of(named.known[name]) if name in named.known else {}
    given: dict[str, Any] = {"name": name}
    for option in options:
        key, _, text = (part.strip() for part in option.partition("="))
        is_text = kinds(hints.get(key, str)) == {str}
        given[key] = text if is_text and text != "null" else read_yaml(text, f"option {key}={text}")
    return given


def to_plain(value: Any, hint: Any = None) -> Any:
    """Plain values of a block, or of a field of that type, as YAML holds them and a `Builder` reads them."""
    named, inner = note(hint, Named), bare(hint)
    if named is not None:
        return {"name": named.name_of(value)} | to_plain(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = hints_of(type(value))
        return {f.name: to_plain(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        of = get_args(inner)[0] if get_origin(inner) is tuple else None
        return [to_plain(item, of) for item in value]
    return value


class Builder:
    """Makes blocks of plain values, and gathers what is wrong with them in `mistakes`."""

    def __init__(self, root: type | None = None):
        """Begin without mistakes; keys of `root`'s blocks are known to those who look elsewhere for them."""
        self.mistakes: list[str] = []
        self.root = root

    def block(self, cls: type, given: Any, where: str, *, named: bool = False) -> Any:
        """Make a dataclass."""
        if not isinstance(given, Mapping):
            return self._wrong(where or "the configuration", f"should be a block of keys, not {given!r}")
        before, hints = len(self.mistakes), hints_of(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        allowed = [*["name"] * named, *fields]
        for key in given:
            if key not in fields:  # the name of a named block was taken out before
                hint = "" if synonym(str(key), allowed) else self._elsewhere(str(key))
                hint = hint or close_match(str(key), allowed)
                self._wrong(_join(where, key), f"unknown key.{hint} Allowed are {', '.join(allowed)}")
        values = {}
        for name, field in fields.items():
            default = default_of(field)
            if name in given:
                values[name] = self.value(hints[name], given[name], _join(where, name), default)
            elif default is dataclasses.MISSING and _has_block(hints[name]):
                values[name] = self.value(hints[name], {}, _join(where, name))
            elif default is dataclasses.MISSING:
                self._wrong(_join(where, name), "is missing")
        if len(self.mistakes) > before:
            return _WRONG
        try:
            return cls(**values)
        except ValueError as error:
            return self._wrong(where, str(error))

    def value(self, hint: Any, given: Any, where: str, default: Any = None) -> Any:
        """Make whatever a type describes."""
        kind, named, short = bare(hint), note(hint, Named), note(hint, Short)
        if given is None and type(None) in get_args(hint):
            return None
        if named is not None:
            return self._named(named, given, where)
        if short is not None and isinstance(given, str):
            given = {short.key: given}
        if short is not None and not isinstance(given, Mapping):
            return self._wrong(where, f"{short.advice}, not {given!r}")
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            if isinstance(given, kind):
                return given
            if isinstance(given, Mapping) and isinstance(default, kind):
                given = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)} | dict(given)
            return self.block(kind, given, where)
        origin, parts = get_origin(kind), get_args(kind)
        if origin is tuple and _has_block(parts[0]):
            items = given if isinstance(given, list | tuple) else [given]
            return tuple(self.value(parts[0], item, f"{where}.{i}") for i, item in enumerate(items))
        if isinstance(origin, type) and issubclass(origin, Mapping) and _has_block(parts[1]):
            if not isinstance(given, Mapping):
                return self._wrong(where, f"should be a block of keys, not {given!r}")
            return {str(key): self.value(parts[1], item, _join(where, key)) for key, item in given.items()}
        if origin is tuple and isinstance(given, str | int | float):
            given = (given,)
        value, mistakes = read_value(hint, given)
        told = mistakes or [f": {each}" for each in out_of_range(where.rpartition(".")[2], hint, value)]
        self.mistakes += [f"{where}{each}" for each in told]
        return _WRONG if told else value

    def _named(self, named: Named, given: Any, where: str) -> Any:
        if isinstance(given, str):
            try:
                given = parse_spec(given, named)
            except UserError as error:
                return self._wrong(where, str(error))
        if not isinstance(given, Mapping):
            return self._wrong(where or named.what, f"should be a block of keys, not {given!r}")
        rest = dict(given)
        name = rest.pop("name", None)
        if not isinstance(name, str) or name not in named.known:
            told = "is missing" if name is None else f"unknown {named.what} {name!r}"
            hint = close_match(name, named.known) if isinstance(name, str) else ""
            return self._wrong(where and f"{where}.name", f"{told}.{hint} Allowed are {', '.join(named.known)}")
        return self.block(named.known[name], rest, where or name, named=True)

    def _wrong(self, where: str, told: str) -> Any:
        self.mistakes.append(f"{where}: {told}" if where else told)
        return _WRONG

    def _elsewhere(self, key: str) -> str:
        """Ask whether a key of another block is meant."""
        for name, hint in hints_of(self.root).items() if self.root else ():
            named, kind = note(hint, Named), bare(hint)
            classes = named.known.values() if named else [kind] if dataclasses.is_dataclass(kind) else []
            found = synonym(key, [field.name for cls in classes for field in dataclasses.fields(cls)])
            if found is not None:
                return f" Did you mean {name}.{found}?"
        return ""


def bare(hint: Any) -> Any:
    """A type without the notes beside it, and without None."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        return bare(parts[0]) if len(parts) == 1 else hint
    return hint


def note(hint: Any, kind: type[T]) -> T | None:
    """The note of a kind beside a type."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((each for each in notes if isinstance(each, kind)), None)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _has_block(hint: Any) -> bool:
    return note(hint, Named) is not None or dataclasses.is_dataclass(bare(hint))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default; `dataclasses.MISSING` where it has to be given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
