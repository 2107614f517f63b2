"""Where weights are and which ones they are: a local folder, a Hub id, or a part of an embedded world.

An identity names the *content* of weights, so that results of other weights under the same path are never taken for
theirs. The content of a large file is judged by 64 pieces of it, spread evenly: training moves every tensor.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from diffpo.errors import UserError

EMBEDDED = {"shapes:base": "shapes/pipeline", "shapes:pickscore": "shapes/pickscore", "moving:base": "moving/base"}
"""Names of the embedded worlds' weights, and what `diffpo.worlds.assets` calls them."""

_CONTENT = (".safetensors", ".json", ".bin", ".txt", ".model", ".pt", ".pth")
_MEGABYTE = 1 << 20
_PIECES = 64


@dataclass(frozen=True)
class Weights:
    """Weights on this machine's disk."""

    path: Path
    """A folder, or one file."""
    known: str | None = None
    """An identity that is known without reading them."""

    @cached_property
    def identity(self) -> str:
        """`REPO@COMMIT` for the Hub, otherwise a hash of the content, which is read when this is first asked for."""
        return self.known or f"blake2b:{fingerprint(self.path)}"


def locate(spec: str, *, what: str, fetch: Callable[[str], Path]) -> Weights:
    """Find weights by local path, embedded name or Hub id.

    Args:
        spec: What the user gave.
        what: What it should be, for messages: "a diffusers model".
        fetch: Brings a Hub repository's files to the disk, unless they are cached, and says where its snapshot is.

    Raises:
        UserError: If nothing is there, or the Hub has it not, or cannot be reached.
    """
    path = Path(spec).expanduser()
    if path.exists():
        return Weights(path)
    if spec in EMBEDDED:
        from diffpo.worlds.assets import asset_path

        try:
            return Weights(asset_path(EMBEDDED[spec]))
        except FileNotFoundError as error:
            raise UserError(f"{spec} is not there: {error}") from error
    if spec.partition(":")[0] in {name.partition(":")[0] for name in EMBEDDED}:
        raise UserError(f"unknown embedded weights {spec!r}; there are {', '.join(EMBEDDED)}.")
    if spec.startswith((".", "/", "~")) or spec.count("/") != 1 or "\\" in spec:
        raise UserError(f"there is no {path}. Give the path of {what}, or a Hub id such as owner/name.")
    folder = fetch(spec)
    return Weights(folder, f"{spec}@{folder.name}")


def snapshot(repo: str, *, what: str, patterns: Sequence[str], probe: str) -> Path:
    """Fetch the files of a Hub repository that match `patterns`; cached ones are not fetched again.

    Args:
        repo: Its id.
        what: What it should be, for messages.
        patterns: File names, with `*`.
        probe: A file (or pattern) without which it is not `what`; it is named where the Hub cannot be reached.

    Raises:
        UserError: If the Hub has no such repository, wants a login, or cannot be reached while files are missing.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(repo, what=what, probe=probe):
        folder = Path(snapshot_download(repo, allow_patterns=list(patterns)))
    if not any(folder.glob(probe)):
        raise UserError(f"{repo} (as cached in {folder}) has no {probe}, so it is not {what}.")
    return folder


BROKEN = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, UnpicklingError)
"""What the libraries that load weights raise at files that are broken, or of another kind."""
MORE_THAN_TENSORS = "holds more than tensors, or is no torch file; opening it could run any code, so it is not opened"


def reason(error: Exception) -> str:
    """Say why weights could not be loaded, without the libraries' advice to run code that came with them."""
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return "it needs code of its own, which is never run. Give a model that transformers or diffusers knows itself"
    if isinstance(error, UnpicklingError) or "weights_only" in text:
        return f"it {MORE_THAN_TENSORS}. Give the weights as safetensors"
    return text or type(error).__name__


@contextmanager
def hub_errors(repo: str, *, what: str, probe: str) -> Iterator[None]:
    """Turn what goes wrong with the Hub into messages that say which file is missing and what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} asks for a login: accept its terms on the Hub, then run `hf auth login`.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"there is no folder {repo} here, and the Hub has no such id. Check the name, or give the folder of {what}."
        ) from error
    except (errors.LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"there is no folder {repo} here, and as a Hub id its {probe} is neither in the local cache nor can the "
            f"Hub be reached. Connect once to download it, or give the path of a local folder that holds {what}."
        ) from error


def fingerprint(path: Path) -> str:
    """Hash a weight file, or all weights and configurations below a folder; names count, the place does not."""
    digest = hashlib.blake2b(digest_size=16)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _CONTENT and p.is_file())
    for file in files:
        relative = file.name if path.is_file() else file.relative_to(path).as_posix()
        if not any(part.startswith(".") for part in Path(relative).parts):
            size = file.stat().st_size
            digest.update(f"{relative}\0{size}\0".encode())
            with open(file, "rb") as stream:
                for piece in range(_PIECES):
                    if size > _PIECES * _MEGABYTE:
                        stream.seek(piece * (size - _MEGABYTE) // (_PIECES - 1))
                    digest.update(stream.read(_MEGABYTE))
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the JSON files beside weights; a `UserError` where it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold a JSON object, and is a {type(content).__name__}.")
    return content
