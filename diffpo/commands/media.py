"""The commands that make media and look at each by itself: generate, score, geneval, set-metrics."""

from pathlib import Path
from typing import Annotated

import typer

from diffpo.commands.shared import Folders, Fresh, compare_command, listed, quiet, say


def generate(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a Hub id, or shapes:base.", show_default=False)],
    prompts: Annotated[str, typer.Option(help="A file of prompts, or a named set such as shapes:heldout:200.")],
    out: Annotated[Path, typer.Option(help="The media folder to write.")],
    tuned: Annotated[str | None, typer.Option(help="A run of diffpo train, or its final/.")] = None,
    lora: Annotated[str | None, typer.Option(help="A LoRA: folder, file or Hub id.")] = None,
    denoiser: Annotated[str | None, typer.Option(help="A fully tuned UNet or transformer: folder or Hub id.")] = None,
    label: Annotated[str | None, typer.Option(help="Name of the model in tables and grids.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds per prompt: 0,1,2 or a range 0-3.")] = "0",
    noise: Annotated[
        str,
        typer.Option(
            help="per-prompt: right for statistics; consecutive; shared: all prompts get the seeds as they are."
        ),
    ] = "per-prompt",
    distinct_seeds: Annotated[bool, typer.Option(help="The same as --noise consecutive.")] = False,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5,
    batch: Annotated[
        int | None, typer.Option(help="Images at a time: 4 on a CPU, as many as fit on a GPU, unless given.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels; the model's own by default.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; the model's own number by default.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second of a clip; the model's own by default.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to guide away from.")] = None,
    user: Annotated[str | None, typer.Option(help="Whom the images are for, by a run with a user adapter.")] = None,
    blend: Annotated[str | None, typer.Option(help="Or a blend of users: alice:0.7,bob:0.3.")] = None,
    users: Annotated[
        Path | None, typer.Option(help="A folder of diffpo data users that knows them; the run's by default.")
    ] = None,
    user_pairs: Annotated[
        str | None, typer.Option(help="A table of their pairs, of people who are new: embedded like the run's.")
    ] = None,
    strength: Annotated[float, typer.Option(help="What the user's part is multiplied with; 0 is the base.")] = 1.0,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; on a GPU half precision unless given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    fresh: Fresh = False,
) -> None:
    """Make images or clips of prompts; the same command continues after a kill. The safety checker is off."""
    from diffpo.config.blocks import make
    from diffpo.config.options import parse_seeds, parse_size
    from diffpo.errors import UserError

    quiet()
    from diffpo.generation.generate import generate as run
    from diffpo.generation.settings import GenerateOptions
    from diffpo.media.prompts import load_prompts

    given = {"model": model, "tuned": tuned, "lora": lora, "denoiser": denoiser, "seeds": parse_seeds(seeds)}
    given |= {"noise": "consecutive" if distinct_seeds else noise, "steps": steps, "guidance": guidance, "batch": batch}
    given |= {"size": parse_size(size), "frames": frames, "fps": fps, "negative_prompt": negative_prompt}
    given |= {"dtype": dtype, "device": device}
    if {user, blend, users, user_pairs} != {None}:
        from diffpo.commands.users import whom

        given |= whom(tuned, user, blend, users, user_pairs) | {"strength": strength}
    elif strength != 1.0:
        raise UserError("--strength says how strongly a user is told: give --user or --blend, too.")
    done = run(make(GenerateOptions, given, "generate"), load_prompts(prompts), out, label=label, fresh=fresh)
    scorer = "shapes" if model.startswith("shapes:") else "pickscore"  # one that knows what the model draws
    made = "images" if all(item.frames == 1 for item in done.media) else "clips"
    say(f"wrote {len(done.media)} {made} to {out} ({done.reused} were there)", f"diffpo score {out} --scorer {scorer}")


def score(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Media folders; or any folders of images with prompts, or tables of paths and prompts.",
            show_default=False,
        ),
    ],
    scorers: Annotated[
        list[str],
        typer.Option(
            "--scorer", "-s", help="A scorer; with options: pickscore,path=FOLDER,scale=cosine. May be repeated."
        ),
    ],
) -> None:
    """Score images, whoever made them; what was scored before is kept."""
    from diffpo.config.options import make_scorer

    made = [make_scorer(name) for name in scorers]
    quiet()
    from diffpo.media.folder import scores_file
    from diffpo.scorers.scores import score_folder

    for folder in folders:
        score_folder(folder, made)
    sources = [folder if folder.is_dir() else scores_file(folder) for folder in folders]
    say(f"wrote {', '.join(str(scores_file(folder)) for folder in folders)}", compare_command(sources))


def geneval(
    folders: Annotated[list[Path], typer.Argument(help="Media folders.", show_default=False)],
    detector: Annotated[str, typer.Option(help="mask2former (path=FOLDER, batch=8) or shapes.")] = "mask2former",
    colors: Annotated[
        str | None, typer.Option(help="A CLIP that names colours: clip,model=FOLDER; GenEval's by default.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="What is asked for, if the folders do not say: geneval, or a file of its lines.")
    ] = None,
) -> None:
    """Judge by GenEval whether images show the objects, counts, colours and positions that their prompts ask for."""
    quiet()
    from diffpo.commands.geneval import run_geneval_command

    run_geneval_command(folders, detector, colors, prompts=prompts)
    written = ", ".join(f"{folder}/geneval.json" for folder in folders)
    say(f"wrote {written}", compare_command(folders, " --scorer geneval"))


def set_metrics(
    folders: Folders,
    features: Annotated[
        list[str] | None, typer.Option(help="clip (model=FOLDER) or inception (path=FILE); may be repeated.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="A folder of images that distances are to; else the baseline.")
    ] = None,
    limit: Annotated[float, typer.Option(help="Share of the baseline beyond which a drift is an alarm.")] = 0.1,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("sets.json"),
) -> None:
    """Measure FID, KID, diversity within a prompt, and alarms of over-optimisation."""
    quiet()
    from diffpo.commands.set_metrics import run_set_metrics

    written = listed(out)
    run_set_metrics(folders, features or ["clip"], reference=reference, limit=limit, out=out)
    say(f"wrote {written}", f"diffpo grid {' '.join(map(str, folders))}")
