"""The report: what it says, that it stands alone, and that nobody's prompt becomes part of its code."""

import base64
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from media_copies import reworded
from PIL import Image

from diffpo.compare.compare import compare
from diffpo.compare.numbers import points
from diffpo.errors import UserError
from diffpo.media.frames import Clip
from diffpo.report.curves import MAX_POINTS, PANELS, draw_panels, moving_average, read_metrics, thin
from diffpo.report.embed import data_uri
from diffpo.report.page import write_report

EVIL = '<script>alert("x")</script> & </title><img src=x onerror=alert(1)> {{ 7 * 7 }} \' "'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a short history."""
    folder = tmp_path_factory.mktemp("runs") / "dpo"
    folder.mkdir()
    lines = []
    for step in range(1, 101):
        loss = math.log(2) - 0.001 * step
        lines.append(
            {"step": step, "loss": loss, "rewards/accuracies": 0.5, "error/chosen": 0.2, "error/rejected": 0.2}
        )
    lines.append({"step": 100, "eval/loss": 0.62, "note": "text is passed over"})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 101, "lo')
    (folder / "config.yaml").write_text(f"method:\n  beta: 2000\n# {EVIL}\n")
    return folder


@pytest.fixture(scope="module")
def evil(folders, tmp_path_factory):
    """The folders again, with prompts and a label that are HTML."""
    root = tmp_path_factory.mktemp("evil")
    labels = ("base", "tuned" + EVIL)
    return [reworded(f, root / f.name, EVIL, label) for f, label in zip(folders, labels, strict=True)]


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in {"meta", "img", "path", "use", "rect", "stop", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html(evil, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(out, compare(evil), evil, run=run, title=f"Title {EVIL}").read_text(encoding="utf-8")


def test_untrusted_text_stays_text(html):
    page = Page(html)
    assert page.tags.count("script") == 1  # the page's own
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.text.count(EVIL) > 10  # prompts, label, title and configuration, as they were
    assert page.open == []


def test_the_page_allows_its_own_script_and_nothing_else(html):
    """`script-src` names the digest of exactly what stands between the tags."""
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for tag, name, value in Page(html).attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:;") and policy.endswith(f"script-src 'sha256-{digest}'")


def test_nothing_is_fetched(html):
    assert not re.search(r"https?://|//cdn|@import|<link|<iframe", html.replace(EVIL, ""))
    sources = [value for _, name, value in Page(html).attributes if name in {"src", "href", "xlink:href"}]
    assert sources and all(value.startswith(("data:image/", "#")) for value in sources)
    assert not re.search(r"url\((?!#)", html)


def test_it_follows_light_and_dark(html):
    assert "prefers-color-scheme: dark" in html
    drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", html))
    assert drawn <= {"#000000"}, "a curve with a colour of its own is invisible in one of the modes"


def test_it_shows_the_whole_story(folders, run, tmp_path):
    found = compare(folders)
    (comparison,) = found.comparisons
    html = write_report(tmp_path / "deep" / "report.html", found, folders, run=run, seed=3).read_text()
    text = " ".join(Page(html).text.split())
    assert comparison.headline in text
    for part in (
        "At random",
        "with seed 3",
        "Largest wins",
        "Training",
        "beta: 2000",
        "No humans were asked",
        "DDIMScheduler",
    ):
        assert part in text
    assert all(note in text for note in comparison.notes)
    assert text.index(comparison.headline) < text.index("At random") < text.index("Largest wins")
    rate = comparison.results[0].win_rate
    shown = Page(html).tags.count("img") - 1  # one is the frame for the enlarged image
    assert shown == 2 * (8 + min(4, rate.wins) + min(4, rate.losses))


def test_the_figures_of_the_summary(folders, tmp_path):
    """Interval, p, what could have been found, prompts: as numbers and with what they are."""
    found = compare(folders, scorers=["shapes-utility"])
    result = found.comparisons[0].results[0]
    rate, html = result.win_rate, write_report(tmp_path / "r.html", found, folders).read_text()
    facts = html[html.index('<dl class="facts">') : html.index("</dl>")]
    assert re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", facts) == [
        ("95% interval", f"{100 * rate.ci_low:.1f}% to {100 * rate.ci_high:.1f}%"),
        ("p, by Holm", f"{result.adjusted_p:.3f}"),
        ("minimum detectable effect (80% power)", f"{points(rate.detectable)} points"),
        ("prompts", "6"),
    ]


def test_large_images_have_wide_columns(folders, tmp_path):
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    assert "examples large" not in write_report(tmp_path / "r.html", compare(copies), copies).read_text()
    for path in (path for folder in copies for path in folder.glob("*.png")):
        with Image.open(path) as image:
            image.resize((200, 200)).save(path)
    assert "examples large" in write_report(tmp_path / "r.html", compare(copies), copies).read_text()


def test_losses_are_shown_as_openly_as_wins(folders, tmp_path):
    html = write_report(tmp_path / "r.html", compare(folders, baseline="tuned"), folders).read_text()
    assert "Largest losses" in html and "base loses to tuned" in html and "<h2>Training" not in html


def test_large_images_are_reduced():
    noise = np.random.default_rng(0).integers(0, 256, (1024, 768, 3), dtype=np.uint8)
    assert data_uri(Clip((Image.fromarray(noise),))).startswith("data:image/webp")
    assert len(data_uri(Clip((Image.new("RGB", (1024, 768), "red"),)))) < 10_000


def test_run_that_is_not_there(folders, tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path / "r.html", compare(folders), folders, run=tmp_path / "nowhere")


def test_metrics_are_read_by_step(run):
    metrics = read_metrics(run)
    assert metrics["loss"][0].tolist() == list(range(1, 101))
    assert metrics["eval/loss"][1].tolist() == [0.62]
    assert "note" not in metrics
    assert read_metrics(run.parent) == {}


def test_panels_follow_the_metrics(run):
    titles = [panel.title for panel, _ in draw_panels(read_metrics(run))]
    assert titles == ["Loss", "Accuracy", "Denoising error"]
    strange = {name: (np.arange(3.0), np.array([np.nan, np.inf, 1.0])) for p in PANELS for name in p.metrics}
    assert len(draw_panels(strange)) == len(PANELS)


def test_many_points_are_averaged_and_few_are_marked():
    """Faint values behind their average; up to 20 points have a mark each."""
    drawn = {n: draw_panels({"loss": (np.arange(float(n)), np.arange(float(n)))})[0][1] for n in (20, 21)}
    assert "opacity: 0.25" in drawn[21] and "opacity: 0.25" not in drawn[20]
    assert drawn[20].count("<use") - drawn[21].count("<use") >= 20 - 4


def test_updates_are_whole_numbers():
    svg = dict((panel.title, svg) for panel, svg in draw_panels({"loss": (np.arange(1.0, 6.0), np.arange(5.0))}))
    shown = re.findall(r"<text[^>]*>([^<]+)</text>", svg["Loss"])
    assert {"1", "2", "3", "4", "5", "update"} <= set(shown) and "1.5" not in shown


def test_moving_average_and_thinning():
    """Start-corrected: the average of a constant is that constant, from the first value on."""
    np.testing.assert_allclose(moving_average(np.full(5, 3.0)), 3.0)
    np.testing.assert_allclose(moving_average(np.array([1.0, 2.0])), [1.0, (0.09 * 1 + 0.1 * 2) / 0.19])
    np.testing.assert_allclose(moving_average(np.array([1.0, np.nan])), [1.0, 1.0])
    long = thin(np.arange(10_000.0), MAX_POINTS)
    assert len(long) == MAX_POINTS and (long[0], long[-1]) == (0, 9999)
