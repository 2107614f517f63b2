"""Files that want to run code, write elsewhere, or be shown where they must not."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from trials import worlds
from trials.forks import Draw, Trial

SECRET = "a-secret-that-nobody-may-see"
SECRET_NUMBER = 20
"""Of the image that nobody may see."""
SCRIPT = "<script>alert('diffpo')</script>"


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path):
        """Remember where."""
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        """Call open(canary, "w") on loading."""
        return open, (str(self.canary), "w")


def trial(draw: Draw) -> Trial:
    """One attack."""
    folder = draw.folder
    canary = folder / "canary"
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    worlds.numbered(outside / "secret.png", SECRET_NUMBER)
    (folder / "work").mkdir()
    name = list(ATTACKS)[draw.number % len(ATTACKS)]
    commands = ATTACKS[name](draw.rng, folder / "work", draw.world, canary)
    before = sorted(path.name for path in outside.iterdir())
    return Trial(name, name, commands, lambda: _found(folder, canary, before), seconds=60)


def _found(folder: Path, canary: Path, before: list[str]) -> list[str]:
    faults = ["code run"] if canary.exists() else []
    beside = sorted(path.name for path in (folder / "outside").iterdir())
    known = {"canary", "outside", "work", "home", "checked.txt", "writes"}
    strange = {path.name for path in folder.iterdir() if not path.name.startswith("said-")} - known
    if beside != before or strange:
        print("written outside:", beside, strange)
        faults.append("leak")
    secret = (folder / "outside" / "secret.png").read_bytes()
    for page in (folder / "work").rglob("*"):
        if page.is_symlink() or not page.is_file():
            continue
        content, text = page.read_bytes(), page.read_text(errors="replace")
        shown = secret in content or base64.b64encode(secret) in content or SECRET in text
        if page.name == "grid.png":
            shown = shown or worlds.color(SECRET_NUMBER) in set(Image.open(page).convert("RGB").get_flattened_data())
        script = page.suffix in (".html", ".md") and SCRIPT in text
        formula = page.name == "out.csv" and any(
            cell.startswith(("=", "+", "@")) for line in csv.reader(text.splitlines()) for cell in line
        )
        if shown or script or formula:
            print("leaked into", page.name)
            faults.append("leak")
    return faults


def _pickle(canary: Path) -> bytes:
    return pickle.dumps({"state_dict": Payload(canary)})


def _weights(rng: random.Random, work: Path, world: Path, canary: Path) -> list[list[str]]:
    """A part of a pipeline, a LoRA or a scorer as a pickle."""
    place = rng.choice(("unet", "vae", "text_encoder", "lora", "scorer", "denoiser", "tuned", "inception"))
    pipe = work / "pipe"
    shutil.copytree(worlds.pipeline(world), pipe)
    (work / "prompts.txt").write_text("a red circle")
    generate = [
        "generate",
        str(pipe),
        "--prompts",
        str(work / "prompts.txt"),
        "--out",
        str(work / "out"),
        "--steps",
        "1",
    ]
    bad = work / rng.choice(("x.bin", "x.pt", "x.ckpt", "x.pth", "x.safetensors"))
    bad.write_bytes(_pickle(canary))
    if place in ("unet", "vae", "text_encoder"):
        for file in (pipe / place).glob("*.safetensors"):
            (pipe / place / file.name.replace(".safetensors", ".bin")).write_bytes(_pickle(canary))
            file.unlink()
        return [generate]
    if place in ("lora", "denoiser", "tuned"):
        return [[*generate, f"--{place}", str(bad)]]
    worlds.media(work / "media", 4)
    if place == "inception":
        return [["set-metrics", str(work / "media"), str(work / "media"), "--features", f"inception,path={bad}"]]
    scorer = rng.choice(("hpsv2", "imagereward", "mps", "hpsv3", "pickscore", "aesthetic"))
    key = "head" if scorer == "aesthetic" else "path"
    return [["score", str(work / "media"), "--scorer", f"{scorer},{key}={bad}"]]


def _code(rng: random.Random, work: Path, world: Path, canary: Path) -> list[list[str]]:
    """A model that brings code of its own."""
    model = work / "model"
    place = rng.choice(("captioner", "perturber", "scorer", "pipeline"))
    if place == "pipeline":
        shutil.copytree(worlds.pipeline(world), model)
        index = json.loads((model / "model_index.json").read_text())
        index["unet"] = ["evil", "Evil"]
        (model / "model_index.json").write_text(json.dumps(index))
    else:
        model.mkdir()
        code = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", None]}
        maps = code | {
            "AutoModelForCausalLM": "evil.M",
            "AutoModelForImageTextToText": "evil.M",
            "AutoProcessor": "evil.P",
        }
        (model / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": maps}))
        for name in ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
            (model / name).write_text(json.dumps({"auto_map": maps}))
    for file in (model / "evil.py", model / "pipeline.py", model / "unet" / "evil.py"):
        if file.parent.is_dir():
            file.write_text(f"open({str(canary)!r}, 'w')\nclass C: pass\nclass M: pass\nclass T: pass\nclass P: pass\n")
    worlds.media(work / "media", 4)
    table, out = ["shapes:pairs", "--limit", "2"], ["--out", str(work / "out")]
    (work / "prompts.txt").write_text("a red circle")
    return {
        "captioner": [["data", "caption", *table, "--captioner", f"transformers,path={model}", *out]],
        "perturber": [
            ["data", "perturb", *table, "--perturber", f"instruct,path={model}", "--preset", "perturbation", *out]
        ],
        "scorer": [["score", str(work / "media"), "--scorer", f"clip,model={model}"]],
        "pipeline": [["generate", str(model), "--prompts", str(work / "prompts.txt"), *out, "--steps", "1"]],
    }[place]


def _script(rng: random.Random, work: Path, world: Path, canary: Path) -> list[list[str]]:
    """Prompts and labels that are HTML or a formula of a spreadsheet."""
    text = rng.choice(
        (SCRIPT, f'"><img src=x onerror=alert(1)>{SCRIPT}', "=HYPERLINK(1)", "{{7*7}}", "</title>" + SCRIPT)
    )
    for label in ("a", rng.choice((text, "b"))):
        media = work / ("one" if label == "a" else "two")
        worlds.media(media, 4)
        lines = [json.loads(line) for line in (media / "manifest.jsonl").read_text().splitlines()]
        lines = [line | {"prompt": f"{text} {line['prompt_id']}", "model": label} for line in lines]
        (media / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
        scored = [{"file_name": line["file"], "prompt": line["prompt"]} for line in lines]
        (media / "metadata.jsonl").write_text("\n".join(map(json.dumps, scored)))
    folders = [str(work / "one"), str(work / "two")]
    return [
        ["score", *folders, "--scorer", "pickscore,path=shapes:pickscore"],
        ["compare", *folders, "--out", str(work / "out.csv"), "--out", str(work / "out.json")],
        ["report", *folders, "--title", text, "--out", str(work / "out.html")],
    ]


def _yaml(rng: random.Random, work: Path, world: Path, canary: Path) -> list[list[str]]:
    """A configuration that calls a function of Python."""
    call = rng.choice(("object/apply:builtins.open", "object/new:builtins.open", "name:builtins.open"))
    (work / "x.yaml").write_text(f"train: !!python/{call} ['{canary}', 'w']\n")
    return [[rng.choice(("train", "evaluate")), str(work / "x.yaml")]]


def _tar(rng: random.Random, work: Path, world: Path, canary: Path) -> list[list[str]]:
    """Members of an archive that lie outside of it, or link there."""
    with tarfile.open(work / "x.tar", "w") as tar:
        for i in range(2):
            image = worlds.numbered(work / f"{i}.png", i).read_bytes()
            for key, content in (("chosen.png", image), ("rejected.png", image), ("txt", b"a caption")):
                name = rng.choice(("", "../../outside/", "/tmp/")) + f"{i}.{key}"
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if rng.random() < 0.3:
                    info.type, info.linkname, info.size = tarfile.SYMTYPE, "../outside/secret.png", 0
                tar.addfile(info, io.BytesIO(content[: info.size]))
    return [["data", "import", str(work / "x.tar"), "--layout", "webdataset", "--out", str(work / "out")]]


def _link(rng: random.Random, work: Path, world: Path, canary: Path) -> list[list[str]]:
    """A media folder, manifest or table that names files outside."""
    worlds.media(work / "media", 4)
    first = work / "media" / "000000-s0.png"
    kind = rng.choice(("symlink", "manifest", "absolute", "caption"))
    lines = (work / "media" / "manifest.jsonl").read_text()
    if kind == "symlink":
        first.unlink()
        first.symlink_to("../../outside/secret.png")
    elif kind == "caption":
        (work / "media" / "manifest.jsonl").unlink()
        for file in sorted((work / "media").glob("*.png")):
            file.with_suffix(".txt").symlink_to("../../outside/secret.txt")
    else:
        there = "../../outside/secret.png" if kind == "manifest" else str(work.parent / "outside" / "secret.png")
        (work / "media" / "manifest.jsonl").write_text(lines.replace("000000-s0.png", there))
    folder = str(work / "media")
    return [
        ["score", folder, "--scorer", "shapes-utility"],
        ["grid", folder, "--out", str(work / "grid.png")],
        ["data", "build", folder, "--scorer", "shapes-utility", "--out", str(work / "out")],
    ]


def _shards(rng: random.Random, work: Path, world: Path, canary: Path) -> list[list[str]]:
    """An index of shards that names a file outside, or users' states that are a pickle."""
    if rng.random() < 0.5:
        tree, place = worlds.encoded_config(world, work / "run"), work / "place"
        shutil.copytree(tree["data"]["encoded"], place)
        index = json.loads((place / "index.json").read_text())
        name = rng.choice(("../../outside/secret.png", str(work.parent / "outside" / "secret.png"), "../secret.arrow"))
        index["splits"]["train"]["shards"][0]["file"] = name
        (place / "index.json").write_text(json.dumps(index))
        tree["data"]["encoded"] = str(place)
    else:
        tree, place = worlds.user_config(world, work / "run"), work / "place"
        shutil.copytree(tree["data"]["users"], place)
        (place / rng.choice(("states.safetensors", "users.json", "users.parquet"))).write_bytes(_pickle(canary))
        tree["data"]["users"] = str(place)
    tree["data"]["cache_dir"] = str(work / "cache")
    return [["train", str(worlds.write(work / "x.yaml", tree))]]


ATTACKS: dict[str, Callable[[random.Random, Path, Path, Path], list[list[str]]]] = {
    "weights as pickles": _weights,
    "code of a model": _code,
    "scripts as texts": _script,
    "YAML that calls": _yaml,
    "members outside an archive": _tar,
    "files outside a folder": _link,
    "shards and users": _shards,
}
