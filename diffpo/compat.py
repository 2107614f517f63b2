"""What differs between machines: repairs for the libraries around us, memory, and the device to use.

torchvision (open_clip needs it) as published on PyPI is built for CUDA. Beside a CPU build of torch its binary cannot
load; on import it still registers fake kernels for operators that the binary should have defined, and fails: "operator
torchvision::nms does not exist". transformers and diffusers import torchvision where it is installed, so they fail too
(pytorch/vision#9085, closed unmended). The mend: define those operators, without kernels, when the binary cannot.
Transforms and models in pure torch then work; an operator in C++ (`torchvision.ops.nms`) raises that it is not there.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffpo.errors import UserError

if TYPE_CHECKING:
    import torch.library

TorchvisionStatus = Literal["imported", "absent", "unknown", "native", "mended"]

# torchvision registers fakes for these unasked; older versions know no qnms: defining it is harmless there
MISSING_OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's `mallopt` calls the free bytes that the heap may keep, and the bytes from which a block lies outside."""

_definitions: list[torch.library.Library] = []  # torch forgets what a library defined once nothing refers to it

PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors"),
    *("open-clip-torch", "pydantic", "xformers", "bitsandbytes"),
)


@cache
def ensure_torchvision() -> TorchvisionStatus:
    """Make `import torchvision` safe: call it before torchvision, transformers, diffusers or open_clip are imported.

    Returns:
        What was found, the same on every call: "absent" (not installed: fine), "imported" (somebody came first: nothing
        to do), "native" (its binary loads), "mended" (its binary cannot load beside this torch), "unknown" (a layout
        without that binary: left alone).
    """
    if "torchvision" in sys.modules:
        return "imported"
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return "absent"

    binaries = [path for suffix in ("so", "pyd") for path in Path(spec.origin).parent.glob(f"_C*.{suffix}")]
    if not binaries:
        return "unknown"

    import torch

    try:
        torch.ops.load_library(str(binaries[0]))  # what torchvision does itself: the binary registers its operators
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in MISSING_OPERATORS:
            library.define(name + SCHEMA)
        _definitions.append(library)
        return "mended"
    return "native"


def quiet_libraries() -> None:
    """Turn off the loading bars and advice of the libraries around us: a command has a progress bar of its own."""
    import logging
    import warnings

    for name in ("bitsandbytes", "torch.distributed", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ensure_torchvision()
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers|peft|torch)\b")
    warnings.filterwarnings("ignore", "Detected pickle protocol")  # torch's of files that it can read all the same


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory: the next update on a CPU takes the same blocks again.

    Left alone, glibc gives them back to the system, which then clears and maps each page anew. What a process holds at
    most hardly changes. Other C libraries are left alone.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(TRIM_THRESHOLD, 2**30)
        library.mallopt(MMAP_THRESHOLD, 2**25)  # blocks of up to 32 MiB: as far as glibc itself would go


def pick_device(name: str) -> str:
    """Resolve `auto` to the best device there is.

    Raises:
        UserError: If the named device is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available here ({error}). Use device=auto or device=cpu.") from error
    return name


def describe_environment() -> dict[str, str]:
    """Versions of what matters, and the devices."""
    import importlib.metadata
    import platform

    import torch

    from diffpo import __version__

    values = {"diffpo": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            values[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            values[name] = "not installed"
    values["threads"] = str(torch.get_num_threads())
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return values | {"gpu": ", ".join(devices) or "none"}
