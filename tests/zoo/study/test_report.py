"""The report of a study: text, Markdown, JSON, and the page, also in headless Chromium."""

import importlib.util
import json
import re
import xml.etree.ElementTree
from pathlib import Path

import pytest

from tests.zoo.study.conftest import TINY, runner_of
from tests.zoo.study.synthetic import finish_study, write_training_speed
from zoo.study.report import as_markdown, as_text, write_report
from zoo.study.tables import tables

_SPEC = importlib.util.spec_from_file_location("browser", Path(__file__).parents[1] / "report" / "browser.py")
browser_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(browser_module)
GRID = {"train.optimizer.lr": [1e-3, 2e-3, 4e-3]}
ODD = "a<b>&c"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of three architectures with scores and a failed run; a summary that needs escaping."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "study.yaml"
    recipes = [str(TINY / "full.yaml"), str(TINY / "window.yaml"), {"recipe": str(TINY / "nsa.yaml"), "name": "nsa"}]
    content = {"name": "toy", "summary": ODD, "recipes": recipes, "seeds": [1, 2, 3, 4], "grid": GRID,
               "tasks": ["mqar"], "match": {"parameters": "1%"}, "out": str(folder / "out")}  # fmt: skip
    path.write_text(json.dumps(content))
    runner = runner_of(path)
    gain = {"tiny_full": 0.0, "tiny_window": 0.05, "nsa": -0.1}

    def loss(run) -> float | None:
        if (run.architecture, run.seed) == ("nsa", 4):
            return None
        away = abs(list(GRID["train.optimizer.lr"]).index(run.point.value("train.optimizer.lr")) - 1)
        return 3 + gain[run.architecture] + 0.2 * away + 0.02 * run.seed + 0.001 * (len(run.id) * run.seed % 5)

    finish_study(runner, loss, lambda run: {"mqar": {"accuracy": 0.6 + 0.01 * run.seed, "nats": 1.0}})
    for number, name in enumerate(runner.runs.architectures):
        if name != "nsa":
            counting = next(iter(runner.runs.counting(name, runner.point(name))))
            write_training_speed(runner, counting, 1000.0 + 100 * number)
        row = {"context": 2048, "batch": 1, "decode_ms": 5.0 + number, "prefill_ms": 1.0}
        (runner.folder.speed / f"{name}.json").write_text(json.dumps({"rows": [row]}))
    return runner_of(path)


@pytest.fixture(scope="module")
def found(study):
    return write_report(study.runs, study.folder)


@pytest.fixture(scope="module")
def page(study, found) -> Path:
    return study.folder.path / "report.html"


def test_json_text_and_markdown_say_the_same_verdicts(study, found):
    results = json.loads((study.folder.path / "results.json").read_text())
    assert results == json.loads(json.dumps(found["results"]))
    text = " ".join(as_text(found, 400).split())
    markdown = (study.folder.path / "report.md").read_text()
    assert markdown == as_markdown(found)
    for each in results["verdicts"]:
        assert " ".join(each["sentence"].split()) in text
        assert each["sentence"] in markdown


def test_results_hold_no_clock(found):
    assert not re.search(r"time|_s\b|tokens_per_s|machine", json.dumps(found["results"]["architectures"]))


def test_every_table_has_cells_for_every_heading(found):
    titles = []
    for title, head, rows in tables(found):
        titles.append(title)
        assert rows
        assert {len(row) for row in rows} == {len(head)}, title
    further = "further scores, not decided"
    assert titles == [
        "quality",
        "cost",
        "training speed",
        "loss that chooses (* chosen)",
        "score",
        further,
        "what was equal",
    ]
    cost = next(rows for title, _, rows in tables(found) if title == "cost")
    assert cost[0][-1] == "200 at 1 x 2,048"
    speed = next(rows for title, _, rows in tables(found) if title == "training speed")
    assert speed == [
        ["tiny_full", "1,000", "200", "not known"],
        ["tiny_window", "1,100", "200", "not known"],
        ["nsa", "–", "200", "not known"],
    ]


def test_a_speed_that_was_not_measured_is_not_compared_and_every_report_says_so(study, found):
    said = (
        "Training speeds are not comparable between tiny_full and nsa: only the first of these was measured alone; "
        "with training: true under measure: in the study file, zoo study run measures each of them alone."
    )
    assert found["measured"]["notes"] == [said]
    files = [(study.folder.path / name).read_text() for name in ("report.md", "report.html", "measured.json")]
    for text in (as_text(found, 400), *files):
        assert said in text
    cost = next(rows for title, _, rows in tables(found) if title == "cost")
    assert [row[4] == "not comparable" for row in cost] == [False, False, True]
    assert "training time at the speed measured alone; not comparable: nsa" in files[1]
    assert "training speed, measured alone; not comparable: nsa" in files[1]


def test_markdown_tables_are_whole_and_pipes_are_escaped(found):
    lines = [line for line in as_markdown(found).splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert len(lines) > 20
    assert min(widths) > 3


def test_the_page_is_whole_by_itself_and_escapes(page):
    text = page.read_text()
    assert "a&lt;b&gt;&amp;c" in text
    assert ODD not in text
    assert not re.search(r"@import|url\((?!#)|src=|https?://(?!www\.w3\.org)", text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        xml.etree.ElementTree.fromstring(svg.replace("xlink:href", "href"))
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for name in re.findall(r"url\(#([^)]+)\)", text):
        assert name in ids


def test_the_page_has_verdicts_first_then_drawings_tables_and_what_a_repetition_needs(page):
    text = page.read_text()
    order = ["class=verdicts", "What limits these conclusions", "Loss while training", "Choosing from the grid",
             "Quality against cost", "Scores", "Numbers", "Where these numbers come from",
             "Command: <code>zoo study run", "<summary>Study</summary>",
             "<summary>Recipe of tiny_full at lr=0.002"]  # fmt: skip
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    for caption in ("Against tokens", "Against training FLOPs", "Against training time", "Against the KV cache",
                    "Against training speed, measured alone", "Against decoding speed",
                    "Against train.optimizer.lr"):  # fmt: skip
        assert caption in text
    assert "nsa-lr=0.002-seed4 diverged" in text
    assert "d_ff: 352" in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if browser_module.path() is None:
        pytest.skip("no Chromium here (chromium, chromium-browser, google-chrome or chrome on the PATH)")
    made = browser_module.Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


CONTRAST = """[...document.querySelectorAll('h1, p, li, td, th, summary, figcaption, figure svg text')].map(e => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = rgb(c).map(v => linear(v / 255));
                         return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  let at = e, back = 'rgba(0, 0, 0, 0)';
  while (at && rgb(back)[3] === 0) { back = getComputedStyle(at).backgroundColor; at = at.parentElement; }
  const style = getComputedStyle(e), ink = e.namespaceURI.endsWith('svg') ? style.fill : style.color;
  const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)]; }).sort((x, y) => x[0] - y[0])[0]"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_can_be_read_at_every_width_in_light_and_in_dark(browser, page, scheme, width):
    browser.errors.clear()
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.width(width)
    browser.open(page)
    assert browser.errors == []
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 10
    assert browser.evaluate("Math.max(...[...document.querySelectorAll('figure')].map(e => e.offsetWidth))") < 700
    contrast, where = browser.evaluate(CONTRAST)
    assert contrast >= 4.5, where
    assert browser.evaluate("document.querySelector('.verdicts').getBoundingClientRect().top") < 200


def test_a_click_hides_an_architecture_in_every_drawing(browser, page):
    browser.width(1280)
    browser.open(page)
    shown = "[...document.querySelectorAll('g.curve-1')].filter(e => !e.classList.contains('hidden')).length"
    assert browser.evaluate(shown) >= 7
    browser.evaluate("document.querySelector('.toggles [data-curve=curve-1]').click()")
    assert browser.evaluate(shown) == 0
