"""The documents: a page, a row and a config for every method, commands that parse, links that lead somewhere."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from runs import ROOT

from diffpo.captioners import CAPTIONERS, LABELLERS, PERTURBERS
from diffpo.commands.app import app
from diffpo.config.evaluation import load_evaluation
from diffpo.config.options import from_spec, make_scorer
from diffpo.config.run import build, load_config
from diffpo.curate.weights import WEIGHTINGS
from diffpo.methods import METHODS

DOCS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted(file for file in (ROOT / "configs").glob("*.yaml") if not file.stem.startswith("eval-"))
PAGES = {file.stem: file for file in (ROOT / "docs" / "methods").glob("*.md") if file.name != "README.md"}
SPECS = {
    "--scorer": make_scorer,
    "-s": make_scorer,
    "--by": lambda spec: from_spec(spec, WEIGHTINGS, "weighting"),
    "--captioner": lambda spec: from_spec(spec, CAPTIONERS, "captioner"),
    "--labeller": lambda spec: from_spec(spec, LABELLERS, "labeller"),
    "--perturber": lambda spec: from_spec(spec, PERTURBERS, "perturber"),
}
OTHERS = ("pip", "source", "hf", "torchrun")
"""Programs that documents name and that are not ours."""


def shell_lines(file: Path) -> Iterator[list[str]]:
    """Commands of a document's bash blocks, or of a config's comments, as words."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        comments = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
        blocks = re.findall(r"^ {3}(diffpo (?:.*\\\n)*.*)$", comments, re.M)
    else:
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def parse(words: list[str]) -> None:
    """Read a command line of ours as the program would, without running it."""
    command, name = typer.main.get_command(app), "diffpo"
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    context = command.make_context(name, list(words))  # an unknown option or a missing argument raises
    config = context.params.get("config") or context.params.get("target")
    if config and config.endswith(".yaml") and (ROOT / config).parent == ROOT / "configs":
        load = load_evaluation if name == "evaluate" else load_config
        load(ROOT / config, context.params.get("overrides") or [])
    for option, following in itertools.pairwise(words):
        if option in SPECS:
            SPECS[option](following)


def check(words: list[str]) -> None:
    program, *rest = words
    if program == "diffpo":
        parse(rest)
    elif program == "accelerate":
        assert (ROOT / rest[rest.index("--config_file") + 1]).is_file()
        parse(rest[rest.index("diffpo") + 1 :])
    elif program == "python":
        assert (ROOT / rest[0]).is_file()
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.M)
    else:
        assert program in OTHERS, f"{program} is not ours"


def problem(words: list[str]) -> str | None:
    """What is wrong with a command, or None."""
    try:
        check(words)
    except Exception as error:
        return f"{' '.join(words)}: {error}"


@pytest.mark.parametrize("file", [*DOCS, *CONFIGS], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_parses(file):
    assert [found for words in shell_lines(file) if (found := problem(words))] == []


def test_there_are_commands_to_check():
    """Nothing above is checked where nothing is found."""
    assert sum(words[0] == "diffpo" for words in shell_lines(ROOT / "README.md")) >= 8
    assert sum(words[0] == "accelerate" for words in shell_lines(ROOT / "README.md")) == 2
    for name, page in PAGES.items():
        assert any(words[:2] == ["diffpo", "train"] for words in shell_lines(page)), name
    for stem in ("sd15-smpo", "sdxl-smpo", "sd21-dcpo", "shapes-smpo", "shapes-dcpo"):
        assert all(words[:2] == ["diffpo", "data"] for words in shell_lines(ROOT / "configs" / f"{stem}.yaml"))
        assert any(shell_lines(ROOT / "configs" / f"{stem}.yaml")), "its table has to be made first"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("diffpo tarin x", "there is no command tarin"),
        ("diffpo train", "Missing"),
        ("diffpo grid media/a --prompt-set 3", "No such option"),
        ("diffpo train configs/shapes-dpo.yaml method.bta=1", "method.bta"),
        ("diffpo train configs/shapes-dop.yaml", "no config"),
        ("diffpo data score shapes:pairs --out x --scorer pikscore", "unknown scorer"),
        ("python scripts/nothing.py", ""),
        ("make demmo", ""),
        ("mkae demo", "is not ours"),
    ],
)
def test_a_command_that_does_not_parse_is_found(line, told):
    found = problem(shlex.split(line))
    assert found is not None and told in found.removeprefix(line)


def test_the_readmes_configuration_is_one():
    (block,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert build(yaml.safe_load(block)).method_name == "dpo"


def test_every_method_has_a_page():
    assert set(PAGES) == set(METHODS)
    index = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    for name, page in PAGES.items():
        text = page.read_text(encoding="utf-8")
        assert re.match(rf"# .*\(`{name}`\)\n", text), name
        assert f"| [{name}]({name}.md) |" in index
        assert f"`diffpo/methods/{name}.py`" in text
        for part in ("**Needs**", "**Other than the", "**Watch**"):
            assert part in text, f"{page.name} says nothing of {part}"


def test_a_page_names_what_its_method_needs():
    for name, method in METHODS.items():
        text = PAGES[name].read_text(encoding="utf-8")
        assert all(f"`{column}`" in text for column in method.requires), name


def test_every_method_has_a_row_whose_configs_are_its_own():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {name: row for row in readme.splitlines() for name in METHODS if f"(docs/methods/{name}.md)" in row[:200]}
    assert set(rows) == set(METHODS)
    for name, row in rows.items():
        _, _, _, code, settings, evidence, _ = row.split("|")
        assert code.strip() == f"`diffpo/methods/{name}.py`" and (ROOT / code.strip(" `")).is_file()
        whole = [stem for stem in re.findall(r"`([\w-]+)`", settings) if not stem.endswith("-")]
        assert whole and evidence.strip()
        assert {load_config(ROOT / "configs" / f"{stem}.yaml").method_name for stem in whole} == {name}


def test_every_method_has_a_config_on_the_shapes_world():
    named = {file.stem.removeprefix("shapes-"): file for file in CONFIGS if file.stem.startswith("shapes-")}
    others = {"segments", "user_id"}  # clips, and users
    still = {name for name, method in METHODS.items() if not method.requires & others} - {"rpo"}  # learns one subject
    assert still <= set(named)
    assert all(load_config(named[name]).method_name == name for name in still)


@pytest.mark.parametrize("file", DOCS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_to_files(file):
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", file.read_text(encoding="utf-8"))
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_every_page_is_reached_from_the_readme():
    """By links, in as many steps as it takes."""
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page.suffix == ".md" and page.is_file() and page not in reached:
            reached.add(page)
            links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
            todo += [(page.parent / link).resolve() for link in links]
    assert set(ROOT.glob("docs/**/*.md")) <= reached
