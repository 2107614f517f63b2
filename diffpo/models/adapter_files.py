"""Reads and tidies the headers of adapters' files."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from diffpo.errors import UserError
from diffpo.models.peft_folder import TENSORS_FILE


def adapter_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's tensors; only the header of its file is read."""
    file = path / TENSORS_FILE if path.is_dir() else path
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter {file} cannot be read: {error}") from error


def sort_header(file: Path) -> None:
    """Put what a safetensors file says of itself into alphabetic order: safetensors writes it in a random one."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= end - 8, "the same words take the same room"
    file.write_bytes(content[:8] + text.ljust(end - 8) + content[end:])
