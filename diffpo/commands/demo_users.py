"""`diffpo demo --personal`: people choose, a model learns to be told who they are, people it never met judge it.

Embed people by four of their pairs each, train the user adapter (PPD) on those who are seen, make images for people who
are not, told their own states, told somebody else's and told nobody, and let their exact utility judge. It calls what
`diffpo data users`, `train` and `personal` call.
"""

import time
from pathlib import Path
from typing import Any

from diffpo.captioners.judges import WorldJudge
from diffpo.commands.personal import Personal, check_out, run_personal
from diffpo.commands.users import make_embedding
from diffpo.config.run import load_config
from diffpo.curate.users import UserOptions, embed_users
from diffpo.data import Pairs
from diffpo.disk.files import write_json
from diffpo.generation.settings import GenerateOptions
from diffpo.media.prompts import load_prompts
from diffpo.training.train import train

CONFIG = "configs/users-ppd.yaml"
EMBEDDER = "clip,path=shapes:pickscore"
PEOPLE = UserOptions(pairs=4, draws=16, support=64, directions=2)
PROMPTS = "users:heldout"


def run_users_demo(
    output: Path, *, seed: int = 0, prompts: int | None = None, fresh: bool = False, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Do all of it in one folder; a second call reuses what is there.

    Args:
        output: Where everything goes.
        seed: Seed of the training.
        prompts: Held-out prompts of each user; 16 unless given.
        fresh: Begin anew.
        overrides: Of the configuration.

    Returns:
        What `summary.json` holds: `win_rate`, `ci_low`, `ci_high` of unseen users against the base, all `results`, and
        `seconds` per stage.
    """
    check_out(output)
    seconds, users, start = {}, output / "users", time.perf_counter()

    def timed(stage: str) -> None:
        nonlocal start
        seconds[stage], start = round(time.perf_counter() - start, 2), time.perf_counter()

    config = load_config(
        CONFIG,
        [
            f"train.output={output}/run",
            f"train.seed={seed}",
            f"data.path={users}/pairs",
            f"data.users={users}",
            *overrides,
        ],
    )
    embed_users(
        Pairs(path="users:pairs", validation_split="test"), make_embedding(EMBEDDER), users, PEOPLE, fresh=fresh
    )
    timed("embed")
    train(config, fresh=fresh)
    timed("train")
    sample = config.sample
    options = GenerateOptions(
        model=config.model.path,
        tuned=str(output / "run"),
        steps=sample.steps,
        guidance=sample.guidance,
        batch=40,
    )
    asked = Personal(
        options=options,
        users=users,
        judge=WorldJudge(),
        prompts=load_prompts(PROMPTS),
        each=prompts or 16,
        most=10,
        rivals={},
    )
    found = run_personal(asked, output, fresh=fresh)
    timed("judge")
    headline = found["results"][0]["groups"]["unseen"]["macro"]
    summary = {
        "win_rate": headline["estimate"],
        "ci_low": headline["ci_low"],
        "ci_high": headline["ci_high"],
        "results": found["results"],
        "users told from their states": found["users told from their states"],
        "seconds": seconds | {"total": sum(seconds.values())},
    }
    write_json(output / "summary.json", summary)
    return summary
