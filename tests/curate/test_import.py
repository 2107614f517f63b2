"""Every layout that `diffpo data import` reads, on a small one of exactly that form, and what a kill leaves behind."""

import io
import json
import multiprocessing
import os
import signal
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

import diffpo.curate.imports.run as imports
from diffpo.curate.imports.run import LAYOUTS, ImportOptions, fitting_imports, import_table
from diffpo.data import Pairs, load_splits
from diffpo.errors import UserError
from diffpo.media.frames import decode

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), COLOURS[colour]).save(file, "png")
    return file.getvalue()


def put(path, content):
    """Write a file and the folders above it: text, bytes, or JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def tar(path, files, mode="w"):
    """Write a tar whose members have exactly these names, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def colour_of(cell):
    pixel = decode(cell).getpixel((0, 0))
    return next(name for name, value in COLOURS.items() if value == pixel)


def read(out, ties="drop"):
    """Rows of an imported table as training sees them, images by their colour."""
    rows = load_splits(Pairs(path=str(out), ties=ties)).train.rows
    return [row | {side: colour_of(row[side]) for side in ("chosen", "rejected")} for row in rows]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "table"


@pytest.fixture
def twins(tmp_path):
    """Twin folders as in kohya's pull request 1427: captions beside the images, of one name."""
    root = tmp_path / "pairs"
    for name, good, bad in (("a", "red", "blue"), ("b", "green", "white")):
        put(root / f"1_style/w/{name}.png", png(good))
        put(root / f"1_style/l/{name}.jpg", png(bad))
        put(root / f"1_style/w/{name}.caption", f"caption {name}\n")
        put(root / f"1_style/l/{name}.caption", f"caption {name}")
    return root


def test_twin_folders(twins, out):
    put(twins / "1_style/w/alone.png", png("red"))
    report = import_table(str(twins), out, ImportOptions())
    assert read(out) == [
        {"prompt": "caption a", "chosen": "red", "rejected": "blue"},
        {"prompt": "caption b", "chosen": "green", "rejected": "white"},
    ]
    assert (report.rows, report.pairs, report.unpaired) == (2, 2, ["1_style/w/alone.png"])
    table = load_splits(Pairs(path=str(out))).train
    assert table.rows[0]["chosen"]["bytes"] == (twins / "1_style/w/a.png").read_bytes(), "not the file itself"


@pytest.mark.parametrize("names", [("win", "lose"), ("chosen", "rejected")])
def test_twin_folders_of_other_names_with_one_caption_for_both(names, tmp_path, out):
    for folder, colour in zip(names, ("red", "blue"), strict=True):
        put(tmp_path / f"pairs/{folder}/a.png", png(colour))
    put(tmp_path / "pairs/a.txt", "both")
    import_table(str(tmp_path / "pairs"), out, ImportOptions(layout="twin-folders"))
    assert read(out) == [{"prompt": "both", "chosen": "red", "rejected": "blue"}]


def test_twin_folders_with_a_caption_for_each(twins, out):
    put(twins / "1_style/l/b.caption", "another caption")
    import_table(str(twins), out, ImportOptions())
    table = load_splits(Pairs(path=str(out))).train
    assert table.captions("chosen").to_pylist() == ["caption a", "caption b"]
    assert table.captions("rejected").to_pylist() == ["caption a", "another caption"]


def test_two_images_of_one_name_in_a_folder_are_refused(twins, out):
    put(twins / "1_style/w/a.jpg", png("red"))
    with pytest.raises(UserError, match=r"a.jpg and .*a.png have the same name"):
        import_table(str(twins), out, ImportOptions())


def test_suffixes(tmp_path, out):
    root = tmp_path / "folder"
    for name, colour in {
        "img_0001_w": "red",
        "img_0001_l": "blue",
        "img_0002_w": "green",
        "img_0002_l": "white",
        "img_0003_w": "red",  # lost its partner; 0001 and 0002 are other pairs
        "dog_0_l": "red",
        "dog_1_w": "blue",
        "dog_2_l": "green",
        "cat_0_e": "red",
        "cat_1_e": "blue",
        "cow_e": "white",
    }.items():
        put(root / f"{name}.png", png(colour))
    for name in ("img_0001", "img_0002_w", "dog", "cat"):
        put(root / f"{name}.txt", f"about {name}")
    report = import_table(str(root), out, ImportOptions(layout="suffixes", ties="keep"))
    assert read(out, ties="keep") == [
        {"prompt": "about cat", "chosen": "red", "rejected": "blue", "preference": 0.5},
        {"prompt": "about dog", "chosen": "blue", "rejected": "red", "preference": 1.0},
        {"prompt": "about dog", "chosen": "blue", "rejected": "green", "preference": 1.0},
        {"prompt": "about img_0001", "chosen": "red", "rejected": "blue", "preference": 1.0},
        {"prompt": "about img_0002_w", "chosen": "green", "rejected": "white", "preference": 1.0},
    ]
    assert (report.rows, report.ties, report.unpaired) == (5, 1, ["cow_e.png", "img_0003_w.png"])
    dropped = import_table(str(root), tmp_path / "dropped", ImportOptions(layout="suffixes"))
    assert (dropped.pairs, dropped.ties) == (4, 1)
    assert "preference" not in read(tmp_path / "dropped")[0]


def test_a_json_list(tmp_path, out):
    for name in COLOURS:
        put(tmp_path / f"list/{name}.png", png(name))
    rows = [
        {"image_0": "red.png", "pref_0": -1, "image_1": "blue.png", "pref_1": 1, "caption": "a"},
        {"image_0": "red.png", "pref_0": 1, "image_1": "green.png", "pref_1": -1, "prompt": "b", "user_id": 7},
        {"image_0": "red.png", "pref_0": 0, "image_1": "white.png", "pref_1": 0, "caption": "tie"},
        {"image_0": "red.png", "pref_0": None, "image_1": "white.png", "pref_1": None, "caption": "unlabelled"},
        {"image_0": "green.png", "pref_0": 0, "image_1": "white.png", "pref_1": 1},
        {"image_0": "red.png", "pref_0": 0, "image_1": "blue.png", "pref_1": 1},
    ]
    put(tmp_path / "list/green.txt", "of the green one")
    put(tmp_path / "list/white.txt", "of the white one")
    report = import_table(str(put(tmp_path / "list/pairs.json", rows)), out, ImportOptions())
    table = load_splits(Pairs(path=str(out))).train
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in read(out)] == [
        ("a", "blue", "red"),
        ("b", "red", "green"),
        ("of the white one", "white", "green"),
    ]
    assert table.captions("rejected").to_pylist() == ["a", "b", "of the green one"]
    assert table.column("user_id") == [None, "7", None]
    assert (report.rows, report.ties, report.unlabelled, report.promptless) == (6, 1, 1, 1)


@pytest.fixture
def hpdv2(tmp_path):
    """Both annotation files, and the folders that their archives unpack to."""
    root = tmp_path / "HPDv2"
    for split in ("train", "test"):
        for name in COLOURS:
            put(root / f"{split}/{name}.jpg", png(name))
    pairs = [
        {"human_preference": [1, 0], "prompt": "a", "file_path": ["red.jpg", "blue.jpg"]},
        {"human_preference": [0, 1], "prompt": "b", "file_path": ["red.jpg", "green.jpg"]},
        {"human_preference": [1, 1], "prompt": "c", "file_path": ["red.jpg", "white.jpg"]},
    ]
    raw = [
        {"rank": ranks, "user_hash": f"u{i}"} for i, ranks in enumerate(([1, 2, 3], [1, 3, 2], [2, 1, 3], [1, 2, 3]))
    ]
    ranking = {"prompt": "d", "image_path": ["red.jpg", "blue.jpg", "white.jpg"], "rank": [1, 2, 3]}
    put(root / "train.json", pairs)
    put(root / "test.json", [ranking | {"raw_annotations": raw}])
    put(
        root / "ranks.json",
        [ranking | {"rank": [2, 1, 2], "image_path": [f"test/{n}.jpg" for n in ("red", "blue", "white")]}],
    )
    return root


def test_hpdv2_choices(hpdv2, out):
    report = import_table(str(hpdv2 / "train.json"), out, ImportOptions())
    assert read(out) == [
        {"prompt": "a", "chosen": "red", "rejected": "blue"},
        {"prompt": "b", "chosen": "green", "rejected": "red"},
    ]
    assert (report.rows, report.ties) == (3, 1)


def test_hpdv2_rankings_become_pairs_with_the_annotators_share(hpdv2, tmp_path, out):
    # red before blue: 3 of 4; red before white: 4 of 4; blue before white: 3 of 4
    report = import_table(str(hpdv2 / "test.json"), out, ImportOptions(labels="soft"))
    assert [(row["chosen"], row["rejected"], row["preference"]) for row in read(out)] == [
        ("red", "blue", 0.75),
        ("red", "white", 1.0),
        ("blue", "white", 0.75),
    ]
    assert (report.rows, report.graded) == (3, 2)
    import_table(str(hpdv2 / "test.json"), tmp_path / "hard", ImportOptions())
    assert "preference" not in read(tmp_path / "hard")[0]


def test_hpdv2_ranks_alone_with_a_tie(hpdv2, out):
    import_table(str(hpdv2 / "ranks.json"), out, ImportOptions(ties="keep"))
    assert [(row["chosen"], row["rejected"], row["preference"]) for row in read(out, "keep")] == [
        ("blue", "red", 1.0),
        ("red", "white", 0.5),
        ("blue", "white", 1.0),
    ]


def test_hpdv2_with_too_few_labels(hpdv2, out):
    put(hpdv2 / "train.json", [{"human_preference": [1], "prompt": "a", "file_path": ["red.jpg", "blue.jpg"]}])
    with pytest.raises(UserError, match=r"row 0 of train.json has 2 images"):
        import_table(str(hpdv2 / "train.json"), out, ImportOptions())


def votes(*words):
    return {"preference.responses": list(words), "preference.responses.status": ["submitted"] * len(words)}


def test_open_image_preferences_as_annotated(tmp_path, out):
    """The results table: addresses on the Hub inside `images`, and one word per annotator."""
    hub = "https://huggingface.co/datasets/data-is-better-together/open-image-preferences-v1/resolve/main"
    for model, colour in (("sd", "red"), ("dev", "blue")):
        put(tmp_path / f"oip/image_quality_{model}/1258.jpg", png(colour))
    images = {"image_1": f"{hub}/image_quality_sd/1258.jpg", "image_2": f"{hub}/image_quality_dev/1258.jpg"}
    row = {
        "images": images | {"prompt": "a fox"},
        "category": "Anime",
        "model_1": "sd",
        "model_2": "dev",
        "prompt": None,
    }
    rows = [
        row | votes("image_2", "image_2", "image_1", "both_good"),
        row | votes("image_1", "image_2"),
        row | votes(),
        row | votes("image_1", "image_2") | {"preference.responses.status": ["submitted", "discarded"]},
    ]
    (tmp_path / "oip/data").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "oip/data/train-00000-of-00001.parquet")
    report = import_table(str(tmp_path / "oip"), out, ImportOptions(labels="soft", ties="keep"))
    assert read(out, "keep") == [
        {"prompt": "a fox", "chosen": "blue", "rejected": "red", "preference": 0.625},
        {"prompt": "a fox", "chosen": "red", "rejected": "blue", "preference": 0.5},
        {"prompt": "a fox", "chosen": "red", "rejected": "blue", "preference": 1.0},
    ]
    assert (report.rows, report.ties, report.unlabelled) == (4, 1, 1)


def test_rapidatas_counts_with_embedded_images(tmp_path, out):
    rows = [
        {
            "prompt": "a",
            "image1": {"bytes": png("red")},
            "image2": {"bytes": png("blue")},
            "votes_image1": 3,
            "votes_image2": 9,
        },
        {
            "prompt": "b",
            "image1": {"bytes": png("red")},
            "image2": {"bytes": png("blue")},
            "votes_image1": 5,
            "votes_image2": 5,
        },
        {
            "prompt": "c",
            "image1": {"bytes": png("red")},
            "image2": {"bytes": png("blue")},
            "votes_image1": 0,
            "votes_image2": 0,
        },
    ]
    kinds = {"image1": datasets.Image(), "image2": datasets.Image()}
    kinds |= {
        "prompt": datasets.Value("string"),
        **dict.fromkeys(("votes_image1", "votes_image2"), datasets.Value("int64")),
    }
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "rapidata.parquet")
    report = import_table(str(tmp_path / "rapidata.parquet"), out, ImportOptions(labels="soft"))
    assert read(out) == [{"prompt": "a", "chosen": "blue", "rejected": "red", "preference": 0.75}]
    assert (report.ties, report.unlabelled) == (1, 1)


def pickapic_sample(key, label, **more):
    files = {
        "jpg_0.jpg": png("red"),
        "jpg_1.jpg": png("blue"),
        "label_0.txt": str(label),
        "label_1.txt": str(1 - label),
    }
    return {
        f"{key}.{name}": content for name, content in (files | {"original_prompt.txt": f"about {key}"} | more).items()
    }


def test_webdataset_in_pick_a_pics_names(tmp_path, out):
    tar(tmp_path / "wds/00000.tar", pickapic_sample("000", 1) | pickapic_sample("001", 0) | pickapic_sample("002", 0.5))
    unjudged = pickapic_sample("d/003", 1, **{"has_label.txt": "False"})
    tar(tmp_path / "wds/00001.tar.gz", unjudged | pickapic_sample("d/004", 0), "w:gz")
    report = import_table(str(tmp_path / "wds"), out, ImportOptions())
    assert read(out) == [
        {"prompt": "about 000", "chosen": "red", "rejected": "blue"},
        {"prompt": "about 001", "chosen": "blue", "rejected": "red"},
        {"prompt": "about d/004", "chosen": "blue", "rejected": "red"},
    ]
    assert (report.rows, report.ties, report.unlabelled) == (5, 1, 1)
    assert len(list(out.glob("*.parquet"))) == 2


def test_webdataset_in_trls_names_with_json(tmp_path, out):
    about = {
        "prompt": "a",
        "user_id": "u",
        "chosen_seed": 3,
        "rejected_seed": 4,
        "rejected_prompt": "b",
        "preference": 0.8,
    }
    files = {"0.chosen.png": png("red"), "0.rejected.png": png("blue"), "0.json": json.dumps(about), "0.cls": "1"}
    files |= {"1.chosen.png": png("green"), "1.rejected.png": png("white"), "1.txt": "plain"}
    import_table(str(tar(tmp_path / "a.tar", files)), out, ImportOptions(labels="soft"))
    first, second = read(out)
    assert first == {"prompt": "a", "chosen": "red", "rejected": "blue", "preference": 0.8} | {
        "user_id": "u",
        "chosen_seed": 3,
        "rejected_seed": 4,
        "rejected_prompt": "b",
    }
    assert (second["prompt"], second["chosen"], second["preference"], second["user_id"]) == (
        "plain",
        "green",
        1.0,
        None,
    )


def test_a_column_that_the_first_pairs_lack_is_left_out_and_counted(tmp_path, out, monkeypatch):
    monkeypatch.setattr("diffpo.curate.imports.webdataset.LOOKED_AT", 1)
    path = tar(tmp_path / "a.tar", pickapic_sample("0", 1) | pickapic_sample("1", 1, **{"user_id.txt": "u"}))
    assert import_table(str(path), out, ImportOptions()).left_out == {"user_id": 1}


def test_nothing_is_written_under_a_name_inside_a_tar(tmp_path, out):
    names = ("../../evil", str(tmp_path / "evil"))
    files = {}
    for name in names:
        files |= pickapic_sample(name, 1)
    path = tar(tmp_path / "deep/er/a.tar", files)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.jpg_0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    before = set(tmp_path.rglob("*"))
    report = import_table(str(path), out, ImportOptions())
    assert report.rows == 2, "the link was followed"
    new = set(tmp_path.rglob("*")) - before
    assert all(path == out or out in path.parents for path in new if "cache" not in str(path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"0.jpg": b"x", "0.txt": "a"}, "0 of a.tar has jpg, prompt; a pair has chosen and rejected, or jpg_0"),
        (pickapic_sample("0", 1) | {"0.label_0.txt": "yes"}, "label_0 is 'yes'; it must be a number"),
        (pickapic_sample("0", 1) | {"0.label_0.txt": "1.5"}, "the preference is 1.5; allowed are numbers from 0 to 1"),
        (pickapic_sample("0", 1) | {"0.json": "{"}, "0.json of a.tar is not JSON"),
        (pickapic_sample("0", 1) | {"0.label_0.json": "1"}, "label_0 a second time"),
    ],
)
def test_a_tar_that_is_not_of_pairs(files, message, tmp_path, out):
    with pytest.raises(UserError, match=message):
        import_table(str(tar(tmp_path / "a.tar", files)), out, ImportOptions())


@pytest.mark.parametrize("cut", [1200, 1024, 600, 100])
def test_a_tar_that_was_cut_off_is_named(cut, tmp_path, out):
    path = tar(tmp_path / "a.tar", pickapic_sample("0", 1))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"a.tar is cut off"):
        import_table(str(path), out, ImportOptions())


def test_a_damaged_tar_is_named(tmp_path, out):
    packed = tar(tmp_path / "a.tar.gz", pickapic_sample("0", 1), "w:gz")
    packed.write_bytes(packed.read_bytes()[:200])
    with pytest.raises(UserError, match=r"a.tar.gz is damaged, or no tar"):
        import_table(str(packed), out, ImportOptions())
    with pytest.raises(UserError, match=r"b.tar is damaged, or no tar"):
        import_table(str(put(tmp_path / "b.tar", b"x" * 512 + bytes(512))), out, ImportOptions())


def test_a_broken_or_missing_image_drops_its_row(tmp_path, out, twins):
    put(twins / "1_style/l/a.jpg", b"no image")
    report = import_table(str(twins), out, ImportOptions())
    assert [row["prompt"] for row in read(out)] == ["caption b"]
    ((name, why),) = report.broken
    assert name == "1_style/w/a" and "a.jpg: not an image" in why
    files = pickapic_sample("0", 1) | {k: v for k, v in pickapic_sample("1", 1).items() if "jpg_1" not in k}
    report = import_table(str(tar(tmp_path / "a.tar", files)), tmp_path / "other", ImportOptions())
    assert report.pairs == 1
    ((name, why),) = report.broken
    assert name == "1 of a.tar" and why.startswith("jpg_1 of 1 of a.tar") and "empty" in why
    assert json.loads((tmp_path / "other/import.json").read_text())["report"]["broken"] == [[name, why]]


def test_images_may_stay_where_they_are(twins, tmp_path, out):
    import_table(str(twins), out, ImportOptions(images="link"))
    assert load_splits(Pairs(path=str(out))).train.column("chosen")[0] == str(twins / "1_style/w/a.png")
    assert [row["chosen"] for row in read(out)] == ["red", "green"]
    with pytest.raises(UserError, match="files of their own"):
        import_table(
            str(tar(tmp_path / "a.tar", pickapic_sample("0", 1))), tmp_path / "b", ImportOptions(images="link")
        )


def test_every_layout_is_recognised_and_no_other_one(twins, hpdv2, tmp_path):
    folder = put(tmp_path / "suffixes/a_w.png", png("red")).parent
    listed = put(tmp_path / "list.json", [{"image_0": "a", "pref_0": 1, "image_1": "b", "pref_1": 0}])
    table = tmp_path / "oip.parquet"
    datasets.Dataset.from_list([{"image_1": "a", "image_2": "b", "prompt": "p"} | votes("image_1")]).to_parquet(table)
    tars = tar(tmp_path / "tars/a.tar", pickapic_sample("0", 1)).parent
    expected = {
        "twin-folders": [twins],
        "hpdv2": [hpdv2 / "train.json", hpdv2 / "test.json"],
        "suffixes": [folder],
        "json-list": [listed],
        "open-image-preferences": [table],
        "webdataset": [tars, tars / "a.tar", tars / "*.tar"],
    }
    assert set(expected) == set(LAYOUTS)
    for name, sources in expected.items():
        for source in sources:
            assert fitting_imports(str(source)) == [name]


def test_an_unknown_or_unclear_layout_lists_what_there_is(twins, tmp_path, out):
    with pytest.raises(UserError, match=r"looks like none of these.*hpdv2: .*webdataset: .*data inspect"):
        import_table(str(tmp_path / "nothing"), out, ImportOptions())
    put(twins / "x_w.png", png("red"))
    with pytest.raises(UserError, match=r"could be twin-folders or suffixes: choose one with --layout"):
        import_table(str(twins), out, ImportOptions())
    with pytest.raises(UserError, match=r"no layout 'tars'; there are hpdv2"):
        import_table(str(twins), out, ImportOptions(layout="tars"))
    with pytest.raises(UserError, match="does not look like webdataset: that is tars"):
        import_table(str(twins), out, ImportOptions(layout="webdataset"))


def test_nothing_usable_leaves_nothing_behind(tmp_path, out):
    path = tar(tmp_path / "a.tar", pickapic_sample("0", 0.5))
    with pytest.raises(UserError, match=r"No pair of .* can be used: 1 rows, of which 1 are ties"):
        import_table(str(path), out, ImportOptions())
    assert not out.exists() and not list(tmp_path.glob(".table*"))


def test_the_same_call_again_reads_what_is_there(twins, tmp_path, out):
    put(twins / "1_style/l/a.jpg", b"no image")
    first = import_table(str(twins), out, ImportOptions())
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    again = import_table(str(twins), out, ImportOptions())
    assert again.counts == first.counts and again.pairs == first.pairs
    assert [tuple(row) for row in again.broken] == [tuple(row) for row in first.broken]
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    with pytest.raises(UserError, match="other data, or with other options"):
        import_table(str(twins), out, ImportOptions(labels="soft"))
    put(tmp_path / "mine/notes.txt", "mine")
    with pytest.raises(UserError, match="is no import"):
        import_table(str(twins), tmp_path / "mine", ImportOptions())


def die_at(source, out, number):
    """Import, and be killed when so many files have been written."""
    whole, done = imports.write_file, []

    def write(path, content):
        if len(done) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(path, content)
        done.append(path)

    imports.write_file = write
    import_table(source, Path(out), ImportOptions())


def test_a_kill_costs_at_most_one_file(tmp_path, out):
    for number in range(4):
        tar(tmp_path / f"wds/{number}.tar", pickapic_sample(f"{number}", number % 2))
    source = str(tmp_path / "wds")
    process = multiprocessing.get_context("fork").Process(target=die_at, args=(source, str(out), 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists(), "an unfinished table looks finished"
    unfinished = out.with_name(".table.unfinished")
    before = {path.name: path.stat().st_ino for path in unfinished.glob("*.parquet")}
    assert len(before) == 2
    report = import_table(source, out, ImportOptions())
    assert not unfinished.exists()
    assert {path.name: path.stat().st_ino for path in out.glob("*.parquet")}.items() >= before.items()
    straight = tmp_path / "straight"
    assert import_table(source, straight, ImportOptions()).counts == report.counts
    assert read(out) == read(straight) and len(read(out)) == 4


def test_a_file_without_a_usable_pair_does_not_disturb_the_others(tmp_path, out):
    tar(tmp_path / "wds/0.tar", pickapic_sample("0", 0.5))
    tar(tmp_path / "wds/1.tar", pickapic_sample("1", 1))
    assert import_table(str(tmp_path / "wds"), out, ImportOptions()).ties == 1
    assert [row["prompt"] for row in read(out)] == ["about 1"]


def test_many_pairs_come_in_several_files_in_their_order(tmp_path, out, monkeypatch):
    monkeypatch.setattr("diffpo.curate.imports.pairs.PART_PAIRS", 3)
    for number in range(8):
        put(tmp_path / f"pairs/w/{number}.png", png("red"))
        put(tmp_path / f"pairs/l/{number}.png", png("blue"))
        put(tmp_path / f"pairs/{number}.txt", f"prompt {number}")
    assert import_table(str(tmp_path / "pairs"), out, ImportOptions()).pairs == 8
    assert len(list(out.glob("train-*-of-00003.parquet"))) == 3
    assert [row["prompt"] for row in read(out)] == [f"prompt {number}" for number in range(8)]
