"""Where the parts of a network are that judges or describes: weights, configuration, tokenizer, image processor.

A part is given as a local path, a Hub id, `shapes:NAME` or, for a single file, an address. What is found has an
identity, which names its content in a scorer's provenance. `loading` loads what is found here.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffpo.disk.weights import Weights, locate, read_json, snapshot
from diffpo.errors import UserError

OPEN_CLIP_CONFIG = "open_clip_config.json"
PROCESSOR_CONFIG = "preprocessor_config.json"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_SAFETENSORS, _PICKLES = "model*.safetensors*", "pytorch_model*.bin*"
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
"""Configurations, tokenizers, templates."""


def find_file(spec: str, *, file: str, what: str) -> Weights:
    """Find one file of weights.

    Args:
        spec: A local file, a local folder, a Hub id or an address that begins with https://.
        file: Its name in a Hub repository; also in a folder, unless there is only one file of weights.
        what: What it should be, for messages.

    Raises:
        UserError: If it is not there and cannot be fetched, as for all that are named find.
    """
    if (path := Path(spec).expanduser()).exists():
        return Weights(pick_file(path, [file], what) if path.is_dir() else path)
    if spec.startswith("https://"):
        return Weights(_download(spec, what))
    found = find_folder(spec, what=what, files=[file], probe=file)
    chosen = pick_file(found.path, [file], what)
    return Weights(chosen, f"{found.identity}/{chosen.name}")


def find_folder(spec: str, *, what: str, files: Sequence[str] = _TEXTS, probe: str) -> Weights:
    """Find a folder; of a Hub repository only `files` are fetched, and it must have `probe`."""
    return _folder(
        locate(spec, what=what, fetch=partial(snapshot, what=what, patterns=files, probe=probe)), what, probe
    )


def find_beside(spec: str | None, own: Weights, *, otherwise: str, what: str, probe: str) -> Weights:
    """Find what weights need besides: configuration, tokenizer, image processor.

    It is where the user said (`spec`), else in their folder (`own`) if `probe` is there, else `otherwise`.
    """
    if not spec and (own.path / probe).is_file():
        return own
    return find_folder(spec or otherwise, what=what, probe=probe)


def find_model(spec: str, *, what: str) -> Weights:
    """Find a model of transformers: a local folder with its config.json, an embedded name or a Hub id.

    From the Hub, a pickle is fetched only where there are no safetensors.
    """

    def fetch(repo: str) -> Path:
        folder = snapshot(repo, what=what, patterns=(*_TEXTS, _SAFETENSORS), probe="config.json")
        if not any(folder.glob(_SAFETENSORS)):
            snapshot(repo, what=what, patterns=[_PICKLES], probe=_PICKLES)
        return folder

    found = _folder(locate(spec, what=what, fetch=fetch), what, "config.json")
    if not (found.path / "config.json").is_file():
        raise UserError(
            f"{found.path} is {describe_folder(found.path)}: it has no config.json, so it is not {what}. Give a folder "
            "as `save_pretrained` writes it, or a Hub id."
        )
    return found


def _folder(found: Weights, what: str, probe: str) -> Weights:
    """Refuse one file where a folder is read."""
    if found.path.is_file():
        home = found.path.parent
        folder = f"its folder, {home}," if any(home.glob(probe)) else f"a folder that holds {probe},"
        raise UserError(f"{found.path} is one file, and a folder is needed for {what}: give {folder} or a Hub id.")
    return found


def pick_file(folder: Path, names: Sequence[str], what: str) -> Path:
    """Find the first of `names` in a folder, else the only file of weights there."""
    files = [folder / name for name in names if (folder / name).is_file()]
    files = files[:1] or sorted(x for x in folder.iterdir() if x.suffix in SUFFIXES and not x.name.startswith("."))
    if len(files) == 1:
        return files[0]
    there = f"several files of weights ({', '.join(file.name for file in files)})" if files else "no file of weights"
    raise UserError(f"{folder} has {there} and no {names[0]}. Give the path of {what}.")


def describe_folder(folder: Path) -> str:
    """Say what a folder of weights seems to be, by its configuration."""
    if (folder / "model_index.json").is_file():
        return "a pipeline of diffusers"
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return "a model of open_clip"
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "_class_name" in config:
        return f"a {config['_class_name']} of diffusers"
    return f"a {config['model_type']!r} model" if "model_type" in config else "no model of transformers"


def _download(address: str, what: str) -> Path:
    """Fetch a file into torch's cache, unless it is there."""
    import torch.hub

    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[-1].partition("?")[0]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"{path.name} is neither in {path.parent} nor can {address} be reached ({error}). Connect once to "
                f"download it, or give the path of {what}."
            ) from error
    return path
