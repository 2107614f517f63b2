"""The report in a real browser: what runs, what is asked for, what keys and clicks do, what can be read."""

import json
import re

import pytest
from chromium import BROWSER, Chromium
from media_copies import faded, reworded

from diffpo.compare.compare import Judging, compare
from diffpo.compare.stats import Resampling
from diffpo.report.page import write_report
from diffpo.scorers import ShapesUtility

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium")

ELSEWHERE = "http://127.0.0.1:9/evil"
EVIL = (
    f'</script><script>window.evil = 1</script><img src="{ELSEWHERE}" onerror="window.evil = 1">'
    f"</style><style>body {{ background: url({ELSEWHERE}) }}</style>' onclick='window.evil = 1' \" {'long ' * 20}"
)
CATEGORIES = ("one" + EVIL, "two")
IMAGES = "[...document.querySelectorAll('.zoom')].filter(b => b.offsetParent)"
VIEWER = "document.getElementById('viewer')"
CONTRAST = """
(names => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (variable) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${variable})`;
    canvas.fillStyle = getComputedStyle(probe).color;
    probe.remove();
    canvas.fillRect(0, 0, 1, 1);
    const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  return names.map(([ink, paper]) => {
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
})
"""


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    """The report of three models; prompts, labels, categories, title and configuration are markup."""
    root = tmp_path_factory.mktemp("browser")
    third = faded(folders[1], root / "third", "pale", [ShapesUtility()])
    media = [
        reworded(folder, root / f"m{i}", EVIL, label)
        for i, (folder, label) in enumerate(zip([*folders, third], ("base", "tuned", "pale" + EVIL), strict=True))
    ]
    run = root / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("\n".join(json.dumps({"step": i, "loss": 1 / i}) for i in range(1, 30)))
    (run / "config.yaml").write_text(f"# {EVIL}\n")
    categories = {EVIL + str(i): CATEGORIES[i % 2] for i in range(6)}
    result = compare(media, judging=Judging(resampling=Resampling(resamples=200), categories=categories))
    out = root / "report.html"
    return write_report(out, result, media, run=run, title=EVIL, categories=categories, examples=3, extremes=2)


@pytest.fixture(scope="module")
def browser(page):
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def opened(browser, page):
    browser.size(1280, 900)
    browser.emulate()
    browser.open(page)
    return browser


def test_a_clean_console_and_no_request(opened, page):
    opened.run("new Promise(resolve => setTimeout(resolve, 300))")
    assert opened.troubles() == []
    assert [url for url in opened.requests() if not url.startswith("data:image/")] == [page.as_uri()]
    assert opened.run("document.scripts.length") == 1 and opened.run("typeof window.evil") == "undefined"


def test_escaping_holds_without_the_policy(browser, page, tmp_path):
    """Two locks: here the first one alone."""
    html, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert count == 1
    (tmp_path / "open.html").write_text(html)
    browser.open(tmp_path / "open.html")
    assert browser.run("typeof window.evil") == "undefined"
    assert not any(ELSEWHERE in url for url in browser.requests())


def test_the_policy_holds_without_escaping(browser, page, tmp_path):
    """Here the second one alone; without it the same markup runs, so that the test can fail."""
    broken = page.read_text().replace("<main>", "<main><script>window.evil = 1</script>", 1)
    (tmp_path / "broken.html").write_text(broken)
    browser.open(tmp_path / "broken.html")
    assert browser.run("typeof window.evil") == "undefined" and browser.troubles()
    (tmp_path / "both.html").write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", broken))
    browser.open(tmp_path / "both.html")
    assert browser.run("window.evil") == 1


def test_text_is_shown_as_it_was_written(opened):
    assert opened.run("document.querySelector('h1').textContent") == EVIL
    assert opened.run("document.querySelector('figcaption .text').textContent").startswith(EVIL)
    assert opened.run("[...document.getElementById('category').options].map(o => o.value)") == ["", *CATEGORIES]


def test_a_click_enlarges_arrows_move_escape_closes(opened):
    count = opened.run(f"{IMAGES}.length")
    opened.click(".zoom")
    assert opened.until(f"{VIEWER}.open")
    assert opened.run(f"{VIEWER}.querySelector('img').src === {IMAGES}[0].querySelector('img').src")
    assert opened.run(f"{VIEWER}.querySelector('img').getBoundingClientRect().height") > 500
    opened.press("ArrowRight")
    assert opened.until(f"{VIEWER}.querySelector('img').src === {IMAGES}[1].querySelector('img').src")
    assert opened.run(f"{VIEWER}.querySelector('[data-say=label]').textContent") == "tuned"
    assert opened.run(f"{VIEWER}.querySelector('[data-say=prompt]').textContent").startswith(EVIL)
    opened.press("ArrowLeft")
    opened.press("ArrowLeft")
    assert opened.until(f"{VIEWER}.querySelector('[data-say=place]').textContent === '{count} of {count}'")
    opened.press("Escape")
    assert opened.until(f"!{VIEWER}.open")
    assert opened.until(f"document.activeElement === {IMAGES}[{count - 1}]"), "the keyboard goes on where it was"


def test_the_keyboard_alone_is_enough(opened):
    opened.run(f"{IMAGES}[0].focus()")
    opened.press("Tab")
    assert opened.until(f"document.activeElement === {IMAGES}[1]")
    opened.run(f"{IMAGES}[1].click()")  # what Enter does to a button
    assert opened.run(f"{VIEWER}.open && {VIEWER}.contains(document.activeElement)")
    assert opened.run(f"{VIEWER}.querySelector('[data-say=place]').textContent").startswith("2 of ")
    opened.press("Escape")


def test_the_filter_shows_one_category(opened):
    everything = opened.run(f"{IMAGES}.length")
    hidden = opened.run("document.querySelectorAll('.example[hidden]').length")
    opened.click(".pick[data-pick=two]")
    assert opened.until("document.getElementById('category').value === 'two'")
    shown = "[...document.querySelectorAll('.example')].filter(e => e.offsetParent)"
    assert set(opened.run(f"{shown}.map(e => e.dataset.category)")) == {"two"}
    assert opened.run(f"{IMAGES}.length") > 0
    assert "examples of two" in opened.run("document.getElementById('count').textContent")
    assert opened.run("document.querySelectorAll('tr.chosen').length") >= 1
    opened.click(".zoom")
    place = f"{VIEWER}.querySelector('[data-say=place]').textContent"
    assert opened.until(f"{place}.endsWith(' of ' + {IMAGES}.length)")
    opened.press("Escape")
    opened.click(".pick[data-pick=two]")
    assert opened.until(f"{IMAGES}.length === {everything}")
    assert opened.run("document.querySelectorAll('.example[hidden]').length") == hidden > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_modes(opened, scheme):
    """Contrast of text by WCAG 2.2: 4.5 at least."""
    opened.emulate(scheme=scheme)
    inks = ("--ink", "--faint", "--better", "--worse", "--unclear")
    pairs = [[ink, paper] for ink in inks for paper in ("--paper", "--card")]
    pairs += [["--warn", "--warn-paper"], ["--ink", "--warn-paper"]]
    ratios = opened.run(f"({CONTRAST})({json.dumps(pairs)})")
    assert min(ratios) > 4.5, dict(zip(map(tuple, pairs), ratios, strict=True))
    paper = opened.run("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", paper)[:3]))
    assert brightness > 700 if scheme == "light" else brightness < 100


def test_print_is_light_and_whole(opened):
    opened.emulate(scheme="dark", media="print")
    assert opened.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.run("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()") == "#1b1d21"
    assert opened.run("getComputedStyle(document.querySelector('.filter')).display") == "none"
    opened.call("Page.printToPDF")
    assert opened.until("[...document.querySelectorAll('details')].every(d => d.open)")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out(opened, width):
    opened.size(width, 800)
    assert opened.run("document.documentElement.scrollWidth") == width
    clipped = "[...document.querySelectorAll('.card:not(.scroll), .figure, figcaption')]"
    assert opened.run(f"{clipped}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.className)") == []
