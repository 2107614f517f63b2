"""Prompt benchmarks by name: how to find the files of one that `prompt_sets.yaml` lists, and to read a part of them.

    partiprompts, drawbench                     hpdv2[:STYLE]
    pickapic[:test_unique|validation_unique]    geneval[:TASK]

Behind the name may stand a local copy (`hpdv2:FOLDER`) instead of a part, and last a count: `partiprompts:200` are 200
prompts drawn by hash, so that they are a fair sample and lie within `partiprompts:400`.
"""

from __future__ import annotations

import difflib
import hashlib
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from diffpo.disk.files import write_file
from diffpo.errors import UserError
from diffpo.media.prompt_files import PromptRecord, read_prompt_file


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Where a prompt set lies and how it is cut."""

    about: str
    files: Mapping[str, str]
    """Part -> its file (with `*`); one entry with an empty key where the file is not cut into parts."""
    hub: str | None = None
    """Dataset id on the Hub."""
    url: str | None = None
    """Folder on the web, for a set that the Hub has not."""
    part_column: str | None = None
    """Column that names a prompt's part: written into the records where parts are files, looked for where not."""
    parts: Sequence[str] = ()
    """Values of `part_column` in a single file."""
    keep: Sequence[str] | None = None
    """Columns worth keeping; None keeps all."""
    default: Sequence[str] = ()
    """Parts that the bare name means; empty: all."""

    @property
    def all_parts(self) -> Sequence[str]:
        """The parts, be they files or values of a column."""
        return [key for key in self.files if key] or self.parts


_LISTED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
BENCHMARKS = {name: Benchmark(**entry) for name, entry in _LISTED.items()}
GENEVAL_TASKS = tuple(BENCHMARKS["geneval"].parts)


def did_you_mean(wrong: str, known: Iterable[str], whole: str = "{}") -> str:
    """A question for the end of a message: which known name is meant; it stands in place of `{}`."""
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f" Did you mean {whole.format(close[0])}?" if close else ""


def benchmark_records(name: str, rest: str) -> list[PromptRecord]:
    """Read a benchmark; behind its colon stands nothing, `PART`, `COUNT`, `PART:COUNT`, or a local file or folder."""
    benchmark = BENCHMARKS[name]
    local = local_copy(name, rest)
    part, count = ("", None) if local else _parse(name, rest)
    wanted = [part] if part else benchmark.default or benchmark.all_parts
    records: list[PromptRecord] = []
    for key, path in _files(name, local, wanted):
        extra = {benchmark.part_column: key} if key and benchmark.part_column else {}
        for record in read_prompt_file(path):
            kept = {k: v for k, v in record.detail.items() if benchmark.keep is None or k in benchmark.keep}
            records.append(PromptRecord(record.prompt, {**kept, **extra}))
    if part and part in benchmark.parts:
        records = [record for record in records if record.detail.get(benchmark.part_column or "") == part]
    return records if count is None else _sample(records, count, f"{name}:{rest}")


def local_copy(name: str, rest: str) -> Path | None:
    """The file or folder that stands behind a benchmark's colon, if it is one and no part or count."""
    if not rest or rest.isdecimal() or rest.partition(":")[0] in BENCHMARKS[name].all_parts:
        return None
    path = Path(rest).expanduser()
    if path.exists():
        return path
    if "/" in rest or "\\" in rest:
        raise UserError(f"{name}:{rest} names a local copy that is not there.")
    return None


def _parse(name: str, rest: str) -> tuple[str, int | None]:
    """`PART`, `COUNT` or `PART:COUNT` -> the part (or nothing) and the count (or None)."""
    known = BENCHMARKS[name].all_parts
    part, _, count = ("", "", rest) if rest.isdecimal() else rest.partition(":")
    if part and part not in known:
        hint = did_you_mean(part, known, f"{name}:{{}}")
        parts = f" Its parts are {', '.join(known)}." if known else " It has no parts."
        raise UserError(f"unknown prompt set '{name}:{rest}'.{hint}{parts} A local copy is given as {name}:PATH.")
    if count and (not count.isdecimal() or int(count) < 1):
        raise UserError(f"'{name}:{rest}': the count must be a number from 1, got {count!r}.")
    return part, int(count) if count else None


def _sample(records: list[PromptRecord], count: int, spec: str) -> list[PromptRecord]:
    """The `count` different prompts with the smallest hashes, in the set's order."""
    different = {record.prompt: record for record in reversed(records)}
    if count > len(different):
        raise UserError(f"{spec!r}: there are only {len(different)} prompts.")
    chosen = set(sorted(different, key=lambda prompt: hashlib.blake2b(prompt.encode(), digest_size=8).digest())[:count])
    return [record for record in reversed(different.values()) if record.prompt in chosen]


def _files(name: str, local: Path | None, wanted: Sequence[str]) -> list[tuple[str, Path]]:
    """Part and file of what is wanted; a local file is the part that its name says, or none."""
    files = BENCHMARKS[name].files
    if local is not None and local.is_file():
        return [(next((key for key, pattern in files.items() if local.match(Path(pattern).name)), ""), local)]
    return [(key, _find(name, pattern, local)) for key, pattern in files.items() if not key or key in wanted]


def _find(name: str, pattern: str, local: Path | None) -> Path:
    """The file of a benchmark: in the local copy (a folder with the same file names), or fetched."""
    benchmark = BENCHMARKS[name]
    if local is not None:
        found = sorted([*local.glob(pattern), *local.glob(Path(pattern).name)])
        if not found:
            raise UserError(f"{local} has no {Path(pattern).name}, so it is no copy of {benchmark.about}.")
        return found[0]
    try:
        return _from_hub(benchmark.hub, pattern) if benchmark.hub else _from_web(name, f"{benchmark.url}/{pattern}")
    except OSError as error:  # all of the Hub's errors about a repository, its files and the network are
        what = f"{pattern} of the Hub dataset {benchmark.hub}" if benchmark.hub else f"{benchmark.url}/{pattern}"
        raise UserError(
            f"{benchmark.about}: {what} is neither in the local cache nor can it be reached. Connect once to "
            f"download it, or copy the file here and give its path: {name}:PATH."
        ) from error


def _from_hub(repo: str, pattern: str) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=[pattern]))
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(pattern)  # offline with another file of the repository cached, or it has moved
    return found[0]


def _from_web(name: str, url: str) -> Path:
    from huggingface_hub import constants

    from diffpo.disk.rows import cache_home

    path = cache_home() / "prompts" / name / url.rsplit("/", 1)[1]
    if not path.is_file():
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("the Hub is switched off")
        with urllib.request.urlopen(url, timeout=30) as response:
            data = response.read()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    return path
