"""One value of a field: what a person wrote, read as the field's type means it."""

import functools
import re
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from diffpo.config.names import close_match
from diffpo.errors import UserError

_adapter = functools.cache(TypeAdapter)

_TRUTHS = {"yes", "no", "on", "off", "true", "false", "y", "n"}


def read_value(hint: Any, given: Any) -> tuple[Any, list[str]]:
    """Read a value of a type without blocks; a text may stand for a number or a truth value.

    Returns:
        The value, and what is wrong with it, each mistake to be written behind the field's key.
    """
    try:
        return _adapter(hint).validate_python(_lenient(hint, given)), []
    except ValidationError as error:
        return None, list(dict.fromkeys(_describe(each) for each in error.errors()))
    except UserError as error:
        return None, [f": {error} (given {given!r})"]


def kinds(hint: Any) -> set[Any]:
    """The simple types and literals that a type is made of: `tuple[int, ...] | None` is of int."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return kinds(parts[0])
    if parts and origin is not Literal:
        return {kind for part in parts for kind in kinds(part)}
    return set() if hint in (type(None), Ellipsis) else {hint}


def _lenient(hint: Any, given: Any) -> Any:
    """Read words as people mean them: numbers in every spelling, `off` where `no` is a choice, or null."""
    if isinstance(given, list | tuple):
        return [_lenient(hint, item) for item in given]
    found = kinds(hint)
    if found and found <= {int, float}:
        return _number(given) if isinstance(given, str | bool) else given
    choices = [choice for kind in found for choice in get_args(kind)]
    if choices and str(given).lower() in ("no", "off", "false"):
        return "no" if "no" in choices else None if type(None) in get_args(hint) else given
    return given


def _number(given: str | bool) -> Any:
    """Read a number; what can be read in two ways, or is a truth value, is refused."""
    text = str(given).strip().lower()
    if text in _TRUTHS:
        raise UserError("a number is meant here, and this is a truth value")
    if re.fullmatch(r"[-+]?0[0-9_]+", text):
        plain = int(text.replace("_", ""))
        raise UserError(f"a number that begins with 0 may be octal or not; write {plain}, or 0o{plain} if it is octal")
    if re.fullmatch(r"[-+]?\d+(:[0-5]?\d)+", text):
        total = functools.reduce(lambda sum, part: 60 * sum + int(part), text.lstrip("+-").split(":"), 0)
        raise UserError(f"a number with colons may be read to the base of sixty; write {total} if that is meant")
    if re.fullmatch(r"[-+]?0(x(_?[0-9a-f])+|o(_?[0-7])+|b(_?[01])+)", text):
        return int(text, 0)
    if re.fullmatch(r"[-+]?\.(inf|nan)", text):
        return float(text.replace(".", ""))
    return float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", text) else text


def _describe(error: Any) -> str:
    """One mistake that pydantic found."""
    place = "".join(f".{part}" for part in error["loc"] if isinstance(part, int))
    message, given = error["msg"].removeprefix("Value error, "), error["input"]
    close = ""
    if error["type"] == "literal_error" and isinstance(given, str):
        close = close_match(given, re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    return f"{place}: {message[0].lower()}{message[1:]} (given {given!r}){close and '.'}{close}"
