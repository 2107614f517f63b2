"""The page of a pair table: clips play in step from inside the file, labels lie below, broken pairs are named."""

import json

import pytest
from chromium import BROWSER, Chromium
from PIL import Image
from real_clips import ramp, video

from diffpo.commands.show import show_pairs
from diffpo.curate.inspect import guess_source
from diffpo.errors import UserError

CLIPS = "[...document.querySelectorAll('.example video')]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module", autouse=True)
def caches(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFPO_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(scope="module")
def table(folder):
    whole = video(ramp(24), 8)
    files = {"a.mp4": whole, "b.mp4": video(ramp(24, 24, 32), 8), "cut.mp4": whole[:-300]}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    Image.fromarray(ramp(1)[0]).save(folder / "p.png")
    rows = [
        {
            "prompt": "</script><b>one",
            "chosen": "a.mp4",
            "rejected": "b.mp4",
            "segments": [1, 0, -1],
            "preference": 0.9,
        },
        {"prompt": "two", "chosen": "cut.mp4", "rejected": "b.mp4", "segments": [1, 0, -1], "preference": 1.0},
        {"prompt": "three", "chosen": "p.png", "rejected": "p.png", "segments": [1], "preference": 1.0},
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return guess_source(str(folder / "pairs.jsonl"))


@pytest.fixture(scope="module")
def page(table, folder):
    broken = show_pairs(table, folder / "pairs.html", 12, None)
    assert len(broken) == 1 and broken[0].startswith("row 1: chosen image") and "cut.mp4" in broken[0]
    return folder / "pairs.html"


def test_the_page_says_what_it_shows(page):
    html = page.read_text()
    assert "&lt;/script&gt;&lt;b&gt;one" in html and "</script><b>" not in html
    assert "row 0, 32x24, 24 frames at 8 per second, preference 0.9" in html
    assert "1 that are broken were left out" in html
    labels = [part.partition('"')[0] for part in html.partition('<ol class="segments"')[2].split('<li class="')[1:4]]
    assert labels == ["better", "tie", "worse"]


def test_fewer_pairs_and_none(table, folder):
    show_pairs(table, folder / "one.html", 1, 3)
    html = (folder / "one.html").read_text()
    assert html.count('<figure class="card example') == 1 and "drawn at random with seed 3" in html
    (folder / "bad.jsonl").write_text(json.dumps({"prompt": "x", "chosen": "cut.mp4", "rejected": "cut.mp4"}))
    with pytest.raises(UserError, match=r"None of the pairs of .* can be shown: row 0: chosen image"):
        show_pairs(guess_source(str(folder / "bad.jsonl")), folder / "bad.html", 1, None)


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_clips_play_in_step_and_stop_at_one_frame(page):
    with Chromium() as browser:
        browser.open(page)
        assert browser.until(f"{CLIPS}.length === 2 && {CLIPS}.every(c => c.readyState >= 2 && !c.paused)")
        assert browser.until(f"{CLIPS}[0].currentTime > 0.3")
        assert browser.run(f"Math.abs({CLIPS}[0].currentTime - {CLIPS}[1].currentTime)") < 0.15
        browser.click(".play")
        assert browser.until(f"{CLIPS}.every(c => c.paused)")
        assert browser.run(f"{CLIPS}[0].currentTime === {CLIPS}[1].currentTime")
        browser.run(
            "(() => { const s = document.querySelector('.track input'); s.value = 0.5;"
            " s.dispatchEvent(new Event('input')); })()"
        )
        assert browser.until(f"{CLIPS}.every(c => Math.abs(c.currentTime - 1.5) < 0.01)")
        browser.click(".zoom")
        assert browser.until("document.querySelector('#viewer video').src.startsWith('data:video/mp4')")
        assert browser.run("document.querySelector('#viewer img').hidden")
        assert browser.troubles() == []
        asked = [url for url in browser.requests() if not url.startswith("data:")]
        assert asked == [page.resolve().as_uri()]
