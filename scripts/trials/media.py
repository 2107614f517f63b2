"""Folders of images with random faults in their files, captions and lists. Prompts have to stay with their images."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import struct
import zlib
from pathlib import Path

from PIL import Image

from trials import worlds
from trials.forks import Draw, Trial


def trial(draw: Draw) -> Trial:
    """A folder of 3 to 6 images or clips, up to three of them broken, scored and perhaps drawn."""
    rng, folder = draw.rng, draw.folder
    place = folder / "media"
    prompts, scorer = worlds.prompts(rng.randint(3, 6)), "shapes"
    files = [worlds.numbered(place / f"{i}.png", i) for i in range(len(prompts))]
    if rng.random() < 0.3:
        files, scorer = [_clip(rng, file) for file in files], "frame-change"
    listing = rng.choice(("metadata.csv", "metadata.jsonl", "txt"))
    told = [f"{listing}"]
    names = [file.name for file in files]
    for _ in range(rng.randint(0, 3)):
        i = rng.randrange(len(files))
        kind = rng.choice(list(SPOILERS))
        told.append(f"{names[i]}: {kind}")
        if files[i].is_file() and not files[i].is_symlink():
            SPOILERS[kind](rng, files[i])
    _describe(place, listing, names, prompts)
    if rng.random() < 0.5:
        hidden = place / rng.choice((".ipynb_checkpoints", "__MACOSX", ".hidden"))
        worlds.numbered(hidden / "0.png", 9)
        (hidden / "0.txt").write_text(prompts[-1])
        told.append("hidden files")
    commands = [["score", str(place), "--scorer", scorer]]
    if rng.random() < 0.5:
        commands.append(["grid", str(place), "--out", str(folder / "grid.png")])
    wanted = dict(zip(names, prompts, strict=True))
    return Trial("; ".join(told), listing, commands, check=lambda: _mispaired(place, wanted), seconds=30)


def _clip(rng: random.Random, picture: Path) -> Path:
    """Put a clip in the place of a picture, of any of the kinds that are read."""
    import real_clips

    picture.unlink()
    frames, kind = real_clips.ramp(rng.choice((1, 2, 6)), 64, 64), rng.choice(("mp4", "mkv", "webm", "gif"))
    file, made = picture.with_suffix(f".{kind}"), io.BytesIO()
    if kind == "gif":
        first, *others = map(Image.fromarray, frames)
        first.save(made, "GIF", save_all=True, append_images=others, duration=rng.choice((0, 40, 100)))
        file.write_bytes(made.getvalue())
    elif kind == "mp4":
        how = rng.choice(({}, {"sound": True}, {"turned": 90}))
        file.write_bytes(real_clips.video(frames, 16, **how))
    else:
        codec = {"codec": "libvpx-vp9"} if kind == "webm" else {}
        file.write_bytes(real_clips.video(frames, 16, kind={"mkv": "matroska"}.get(kind, kind), **codec))
    return file


def _describe(place: Path, listing: str, names: list[str], prompts: list[str]) -> None:
    if listing == "txt":
        for name, prompt in zip(names, prompts, strict=True):
            (place / name).with_suffix(".txt").write_text(prompt)
    elif listing.endswith(".csv"):
        with (place / listing).open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "prompt"), *zip(names, prompts, strict=True)])
    else:
        lines = [json.dumps({"file_name": name, "prompt": text}) for name, text in zip(names, prompts, strict=True)]
        (place / listing).write_text("\n".join(lines))


def _mispaired(place: Path, wanted: dict[str, str]) -> list[str]:
    from diffpo.scorers.scores import read_scores

    if not (place / "scores.parquet").exists():
        return []
    rows = read_scores(place).rows
    return ["mis-paired" for row in rows if wanted.get(Path(row.file).name) != row.prompt]


def _cut(rng: random.Random, file: Path) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(max(1, file.stat().st_size))])


def _flip(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 8) if content else 0):
        content[rng.randrange(len(content))] = rng.randrange(256)
    file.write_bytes(content)


def _lie(rng: random.Random, file: Path) -> None:
    """A small file that says that it is a huge image."""
    header = struct.pack(">IIBBBBB", rng.choice((20000, 60000, 2**31 - 1)), 20000, 8, rng.choice((0, 2, 3, 6)), 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100000)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def _bomb(rng: random.Random, file: Path) -> None:
    """A file of a few kilobytes that is a whole image of hundreds of millions of pixels."""
    Image.new("1", (rng.choice((12000, 20000)), 20000)).save(file, "PNG", optimize=False)


def _other(rng: random.Random, file: Path) -> None:
    image, made = Image.new("RGB", (8, 8), "red"), io.BytesIO()
    kind = rng.choice(("GIF", "BMP", "TIFF", "WEBP", "JPEG", "PPM", "ICO", "EPS", "PDF"))
    image.save(made, kind)
    file.write_bytes(made.getvalue())


def _text(rng: random.Random, file: Path) -> None:
    file.write_bytes(
        rng.choice((b"", b"%!PS-Adobe\nshowpage", b"<svg/>", b"#!/bin/sh\necho", b"PK\x03\x04", b"\0" * 999))
    )


def _mode(rng: random.Random, file: Path) -> None:
    mode = rng.choice(("RGBA", "LA", "P", "1", "I;16", "L", "CMYK"))
    Image.new(mode, (worlds.SIDE, worlds.SIDE)).save(file, "TIFF" if mode == "CMYK" else "PNG")


def _pipe(rng: random.Random, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def _link(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to(rng.choice(("/dev/zero", "/etc/hostname", "nothing", file.name)))


def _gone(rng: random.Random, file: Path) -> None:
    file.unlink()


SPOILERS = {
    "cut off": _cut,
    "bits flipped": _flip,
    "lies about its size": _lie,
    "a bomb": _bomb,
    "another format": _other,
    "no image": _text,
    "another mode": _mode,
    "a pipe": _pipe,
    "a folder": _folder,
    "a link": _link,
    "gone": _gone,
}
