"""What `diffpo personal` does: does a model that is told its users please them?

OUT/base, own, others, ...    the images (see `generation.personal`)
OUT/personal.json             win rates over users, seen and unseen; how well users are told from their states
OUT/users.png                 users x prompts: the same prompts and noise for everybody
OUT/blend.png                 from one user to another
OUT/report.html               all of it on one page
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from diffpo.captioners.base import Case, Choice, UserJudge
from diffpo.compare.personal import GROUPS, PersonalResult, Verdict, agreement, summarise, top_k
from diffpo.curate.embedding import read_choice
from diffpo.data.checks import user_name
from diffpo.data.records import Source
from diffpo.data.splits import normalise, read_splits
from diffpo.disk.ahead import groups
from diffpo.disk.files import without_nan, write_json
from diffpo.disk.rows import digest
from diffpo.errors import UserError
from diffpo.generation.generate import fill_folder
from diffpo.generation.personal import COMMAND, Sitting, make_images, plan_sittings
from diffpo.generation.request import Request
from diffpo.generation.settings import GenerateOptions
from diffpo.generation.users import blended, open_users, stacked
from diffpo.media.folder import Media, open_clip
from diffpo.media.prompts import PromptSet
from diffpo.media.sheet import Cell, Row, draw_grid, write_sheet
from diffpo.media.users import Users
from diffpo.report.personal import PersonalPage, write_personal

COMPARED = (("own", "base"), ("own", "others"), ("others", "base"))
"""Which kinds of images are compared, the claim first."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the second user, along the strip of a blend."""
SHOWN = 4
"""Prompts of the grids: the first ones in the order that is drawn, for in a set neighbours are often alike."""


@dataclass(frozen=True, kw_only=True)
class Personal:
    """What is asked."""

    options: GenerateOptions
    """The model with its user adapter, and how to sample."""
    users: Path
    """The folder of `diffpo data users`."""
    judge: UserJudge
    prompts: PromptSet
    each: int
    """Prompts of each user."""
    most: int
    """Users of each group, the first ones."""
    groups: Sequence[str] = tuple(GROUPS)
    """Whose users sit: `unseen`, `seen`."""
    pairs: Source | None = None
    """The users' own pairs: what a judge is shown of them, and is held against."""
    rivals: Mapping[str, GenerateOptions]
    """Other models, such as plain DPO on everybody's pairs."""
    held_out: int = 8
    """Of the users' own pairs, how many of each a judge that is shown some is held against."""
    seed: int = 0


def run_personal(asked: Personal, out: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Make the images, let the users judge them, write what comes of it.

    Returns:
        What `personal.json` holds.

    Raises:
        UserError: The model and the users do not fit, there are too few prompts, or the judge lacks something.
    """
    check_out(out)
    users = open_users(str(asked.users), Request.of(asked.options).model)
    if asked.judge.needs_choices and asked.pairs is None:
        raise UserError(
            f"the judge {asked.judge.name} has to be shown pairs of the users: give their table as --pairs."
        )
    names = [name for group in asked.groups for name in _members(users, group)[: asked.most]]
    sittings = plan_sittings(users, names, asked.prompts.prompts, asked.each, asked.seed)
    shown = Choices.of(users, sittings, asked.pairs) if asked.judge.needs_choices and asked.pairs else Choices({}, {})
    made = make_images(asked.options, users, sittings, out, asked.rivals, fresh=fresh)
    compared = [*COMPARED[:1], *(("own", name) for name in asked.rivals), *COMPARED[1:]]
    results = [_compare(asked, out, made, sittings, shown, first, second) for first, second in compared]
    found = {
        "judge": asked.judge.provenance,
        "agreement": _agreement(asked, sittings, shown),
        "prompts": {"set": asked.prompts.name, "each": asked.each},
        "results": [result.to_dict() for result in results],
        "images": [
            {"file": item.file, "user": sitting.user, "prompt": item.prompt}
            for item, sitting in zip(made["own"], sittings, strict=True)
        ],
        "users told from their states": _told_apart(users),
    }
    found = without_nan(found)
    write_json(out / "personal.json", found)
    prompts = [sitting.prompt for sitting in sittings[:SHOWN]]
    _write_page(asked, out, users, prompts, results, found, fresh=fresh)
    return found


def check_out(out: Path) -> None:
    """Refuse, before the work, a folder with a report of others: `personal.json` is written before ours.

    Raises:
        UserError: There is one.
    """
    if (out / "report.html").exists() and not (out / "personal.json").is_file():
        raise UserError(f"{out} holds a report.html that is not of `{COMMAND}`: give another folder.")


def _members(users: Users, group: str) -> list[str]:
    """The users of a group, in the folder's order."""
    return [name for name in users.draws if users.seen[name] == GROUPS[group]]


def _told_apart(users: Users) -> dict[str, Any]:
    """How well users are told from their states, those of each group among themselves."""
    found = {}
    for group in GROUPS:
        rows = [(name, row) for name in _members(users, group) for row in users.draws_of(name)]
        if rows:
            found[group] = top_k([users.states(row).flatten().tolist() for _, row in rows], [name for name, _ in rows])
    return found


@dataclass(frozen=True)
class Choices:
    """What users chose themselves."""

    support: dict[int, tuple[Choice, ...]]
    """Support pairs by draw."""
    others: dict[str, list[Choice]]
    """The users' other pairs."""

    @staticmethod
    def of(users: Users, sittings: Sequence[Sitting], source: Source) -> Choices:
        """Read the pairs of the users who sit; those of a prompt of any support are no others.

        Raises:
            UserError: The table has no `user_id`, or lacks support pairs.
        """
        splits = read_splits(source)
        tables = [splits.train] + ([splits.validation] if splits.validation else [])
        rows_of: dict[tuple[str, str], list[Choice]] = {}
        names = {sitting.user for sitting in sittings}
        for table in tables:
            if "user_id" not in table.rows.column_names:
                raise UserError(f"{table.path} has no column `user_id`, so nobody knows whose pairs they are.")
            for row, name in enumerate(map(user_name, table.column("user_id"))):
                if name in names:
                    choice = read_choice(table, row)
                    rows_of.setdefault((name, normalise(choice.prompt)), []).append(choice)
        support, taken = {}, set()
        for sitting in sittings:
            keys = [(sitting.user, normalise(prompt)) for prompt in users.prompts[sitting.own]]
            support[sitting.own] = tuple(choice for key in dict.fromkeys(keys) for choice in rows_of.get(key, ()))
            if not support[sitting.own]:
                raise UserError(f"{source.path} has no support pair of {sitting.user}: give the table they came from.")
            taken |= {
                (sitting.user, normalise(prompt))
                for row in users.draws_of(sitting.user)
                for prompt in users.prompts[row]
            }
        others: dict[str, list[Choice]] = {}
        for key, choices in rows_of.items():
            if key not in taken:
                others.setdefault(key[0], []).extend(choices)
        return Choices(support, others)


def _compare(
    asked: Personal,
    out: Path,
    made: Mapping[str, Sequence[Media]],
    sittings: Sequence[Sitting],
    shown: Choices,
    first: str,
    second: str,
) -> PersonalResult:
    """Let every user judge two kinds of images."""
    cases = [
        Case(
            user=sitting.user,
            shown=shown.support.get(sitting.own, ()),
            prompt=sitting.prompt,
            first=open_clip(out / first, one).first,
            second=open_clip(out / second, other).first,
            key=number,
        )
        for number, (sitting, one, other) in enumerate(zip(sittings, made[first], made[second], strict=True))
    ]
    shares = [share for some in groups(cases, 64) for share in asked.judge.judge(some)]
    verdicts = [Verdict(s.user, s.seen, s.prompt, share) for s, share in zip(sittings, shares, strict=True)]
    return summarise(first, second, verdicts)


def _agreement(asked: Personal, sittings: Sequence[Sitting], shown: Choices) -> dict[str, Any] | None:
    """How often a judge that is shown choices agrees with the users' other ones."""
    if not asked.judge.needs_choices:
        return None
    draw = {sitting.user: sitting.own for sitting in reversed(sittings)}
    shares: dict[str, list[float]] = {}
    for name, row in draw.items():
        cases = [
            Case(name, shown.support[row], c.prompt, *((c.chosen, c.rejected) if i % 2 else (c.rejected, c.chosen)), i)
            for i, c in enumerate(shown.others.get(name, [])[: asked.held_out])
        ]
        given = asked.judge.judge(cases) if cases else []
        shares[name] = [share if i % 2 else 1 - share for i, share in enumerate(given)]
    return agreement(shares)


def _write_page(
    asked: Personal,
    out: Path,
    users: Users,
    prompts: Sequence[str],
    results: Sequence[PersonalResult],
    found: Mapping[str, Any],
    *,
    fresh: bool,
) -> None:
    """Draw the grids and write the page."""
    unseen = [name for name in results[0].users if not users.seen[name]] or list(results[0].users)
    one, other = opposites(users, unseen)
    shown = list(dict.fromkeys([one, *unseen[:4], other]))
    columns: dict[str, dict[str, float]] = {"nobody": {}} | {name: {name: 1.0} for name in shown}
    _draw(asked, users, out, "users", columns, prompts, fresh=fresh)
    strip = {f"{name_share(one, 1 - s)} {name_share(other, s)}".strip(): {one: 1 - s, other: s} for s in SHARES}
    _draw(asked, users, out, "blend", strip, prompts, fresh=fresh)
    page = PersonalPage(
        title=f"{asked.options.tuned}: does it please its users?",
        results=results,
        seen=users.seen,
        found=found,
        pictures={
            "Users and prompts": (out / "users.png", "The same prompts and the same noise for everybody."),
            "From one user to another": (out / "blend.png", f"Blends of {one} and {other}."),
        },
    )
    write_personal(out / "report.html", page)


def name_share(name: str, share: float) -> str:
    """How a blend's share is written; nothing where there is none."""
    return f"{name} {share:.0%}" if share else ""


def opposites(users: Users, names: Sequence[str]) -> tuple[str, str]:
    """The two users whose states are least alike."""
    states = {name: users.states(users.draws_of(name)[0]).flatten() for name in names}
    unit = {name: state / state.norm().clamp(min=1e-12) for name, state in states.items()}
    return min(permutations(names, 2), key=lambda two: float(unit[two[0]] @ unit[two[1]]))


def _draw(
    asked: Personal,
    users: Users,
    out: Path,
    name: str,
    columns: Mapping[str, Mapping[str, float]],
    prompts: Sequence[str],
    *,
    fresh: bool,
) -> None:
    """Draw a grid: a row per prompt, a column per blend of users."""
    request = Request.of(asked.options)
    chosen = PromptSet.of(prompts)
    blends = [
        blended(users, {n: s for n, s in shares.items() if s}) if shares else (users.nobody, 0.0)
        for shares in columns.values()
    ]
    media, places = [], {}
    for place in range(len(columns)):
        for item in request.media(chosen, lambda n, _, seed, place=place: f"{n * 100 + place:06d}-s{seed}"):
            media.append(item)
            places[item.file] = place
    states = digest(*(each.numpy().tobytes() for each, _ in blends)).hex()
    audience = stacked({"whose": name, "states": states}, blends, places)
    work = replace(request, audience=audience, label=name)
    folder = out / f"{name}-grid"
    fill_folder(folder, COMMAND, work.describe(chosen), lambda: work.work(folder, chosen, media), fresh=fresh)
    by_prompt = {prompt: [item for item in media if item.prompt == prompt] for prompt in prompts}
    rows = [Row(prompt, tuple(Cell(open_clip(folder, item)) for item in items)) for prompt, items in by_prompt.items()]
    write_sheet(out / f"{name}.png", draw_grid(list(columns), rows, cell=128))
