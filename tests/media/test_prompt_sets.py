"""Prompt benchmarks: their parts, local copies, what the caches hold, and what is said where nothing is to be had."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffpo.errors import UserError
from diffpo.media.prompt_sets import BENCHMARKS, GENEVAL_TASKS
from diffpo.media.prompts import load_prompts

STYLES = ("anime", "concept-art", "paintings", "photo")
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "cat", "count": 2}],
        "exclude": [{"class": "cat", "count": 3}],
        "prompt": "a photo of two cats",
    },
]


@pytest.fixture
def hpdv2(tmp_path):
    """A copy of the four styles, laid out as on the Hub; one prompt stands in two styles."""
    (tmp_path / "benchmark").mkdir()
    for style in STYLES:
        prompts = [*(f"{style} {i}" for i in range(10)), "shared"]
        (tmp_path / "benchmark" / f"{style}.json").write_text(json.dumps(prompts))
    return tmp_path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Put a file into an empty Hub cache, as a download would."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "cache"))

    def put(repo, name):
        root = tmp_path / "hub" / f"datasets--{repo.replace('/', '--')}"
        file = root / "snapshots" / ("0" * 40) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text("0" * 40)
        return file

    return put


def test_styles_of_a_local_copy(hpdv2):
    prompts = load_prompts(f"hpdv2:{hpdv2}")
    assert prompts.name == "hpdv2" and len(prompts) == 41
    assert prompts.categories == tuple(style for style in STYLES for _ in range(11 if style == "anime" else 10))
    assert load_prompts(f"hpdv2:{hpdv2 / 'benchmark'}") == prompts


def test_parts_and_counts_from_the_hub_cache(cache, tmp_path, monkeypatch):
    (tmp_path / "anime").mkdir()
    monkeypatch.chdir(tmp_path)  # where a folder is called like a part, the part is meant
    for style in STYLES:
        cache("zhwang/HPDv2", f"benchmark/{style}.json").write_text(json.dumps([f"{style} {i}" for i in range(30)]))
    everything = load_prompts("hpdv2")
    anime = load_prompts("hpdv2:anime")
    assert len(everything) == 120 and anime.prompts == everything.prompts[:30]
    assert anime.name == "hpdv2:anime"
    few, more = load_prompts("hpdv2:20"), load_prompts("hpdv2:40")
    assert len(few) == 20 and set(few.prompts) < set(more.prompts) < set(everything.prompts)
    assert few.prompts == tuple(p for p in everything.prompts if p in few.prompts), "the set's order"
    assert len(set(few.categories)) > 1, "a sample of all, not the first ones"
    assert len(load_prompts("hpdv2:photo:5")) == 5
    assert few.hash != more.hash and few.name == "hpdv2:20"


def test_partiprompts(cache):
    text = 'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\na "cat"\tAnimals\tImagination\tx\n'
    cache("nateraw/parti-prompts", "PartiPrompts.tsv").write_text(text)
    prompts = load_prompts("partiprompts")
    assert prompts.prompts == ("bond", 'a "cat"') and prompts.categories == ("Abstract", "Animals")
    assert prompts.details[1]["Challenge"] == "Imagination"


def test_pickapic_keeps_captions_only(cache):
    for split in ("test_unique", "validation_unique"):
        file = cache("yuvalkirstain/pickapic_v2_no_images", f"data/{split}-00000-of-00001-e852.parquet")
        pq.write_table(pa.table({"caption": [split, "b", "b"], "jpg_0": [None, b"", b""], "user_id": [1, 2, 3]}), file)
    prompts = load_prompts("pickapic")
    assert prompts.prompts == ("test_unique", "b") and prompts.details == ({"split": "test_unique"},) * 2
    assert load_prompts("pickapic:validation_unique").prompts[0] == "validation_unique"


def test_geneval_by_task(tmp_path, cache):
    text = "".join(json.dumps(line) + "\n" for line in GENEVAL)
    file = tmp_path / "cache" / "prompts" / "geneval" / "evaluation_metadata.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    prompts = load_prompts("geneval")
    assert prompts.categories == ("single_object", "counting")
    assert prompts.details[1]["exclude"] == [{"class": "cat", "count": 3}]
    assert load_prompts("geneval:counting").prompts == ("a photo of two cats",)
    (tmp_path / "mine.jsonl").write_text(text)
    assert load_prompts(f"geneval:{tmp_path / 'mine.jsonl'}") == prompts
    assert load_prompts(tmp_path / "mine.jsonl").details == prompts.details
    assert len(GENEVAL_TASKS) == 6


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_said_offline(name, cache):
    file = next(iter(BENCHMARKS[name].files.values())).split("/")[-1]
    with pytest.raises(UserError) as caught:
        load_prompts(name)
    assert file in str(caught.value) and f"{name}:PATH" in str(caught.value)


def test_another_file_of_the_repository_is_not_enough(cache):
    cache("zhwang/HPDv2", "benchmark/photo.json").write_text('["x"]')
    with pytest.raises(UserError, match=r"benchmark/drawbench\.json of the Hub dataset zhwang/HPDv2"):
        load_prompts("drawbench")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hpdv2:animee", r"Did you mean hpdv2:anime\?"),
        ("partiprompts:Animals", r"It has no parts"),
        ("drawbench:0", r"number from 1, got '0'"),
        ("geneval:counting:x", r"got 'x'"),
        ("geneval:/not/here.jsonl", r"local copy that is not there"),
    ],
)
def test_unknown_parts(spec, message, cache):
    with pytest.raises(UserError, match=message):
        load_prompts(spec)


def test_more_than_there_is_and_a_wrong_folder(hpdv2, tmp_path, cache):
    cache("zhwang/HPDv2", "benchmark/drawbench.json").write_text('["x", "y"]')
    with pytest.raises(UserError, match="there are only 2 prompts"):
        load_prompts("drawbench:3")
    with pytest.raises(UserError, match=r"has no PartiPrompts\.tsv"):
        load_prompts(f"partiprompts:{hpdv2}")


def test_a_single_local_file_is_the_part_that_its_name_says(hpdv2, tmp_path):
    photo = load_prompts(f"hpdv2:{hpdv2 / 'benchmark' / 'photo.json'}")
    assert len(photo) == 11 and set(photo.categories) == {"photo"}
    (tmp_path / "mine.json").write_text('["x", "y"]')
    mine = load_prompts(f"hpdv2:{tmp_path / 'mine.json'}")
    assert mine.prompts == ("x", "y") and mine.categories == ("", "")
    file = tmp_path / "validation_unique-00000-of-00001-c239.parquet"
    pq.write_table(pa.table({"caption": ["a"]}), file)
    assert load_prompts(f"pickapic:{file}").categories == ("validation_unique",)
