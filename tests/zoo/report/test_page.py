"""The HTML page of `zoo compare`: what is in it, and, in headless Chromium, what it does."""

import importlib.util
import re
import xml.etree.ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from zoo.report.columns import load_columns
from zoo.report.compare import Request, compare
from zoo.report.curves import _interesting, curves, smoothed
from zoo.report.drawing import _short
from zoo.report.facts import comparison
from zoo.report.html import legend
from zoo.report.rows import decimal

_SPEC = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browser_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(browser_module)


@pytest.fixture(scope="module")
def page(tiny, run, tmp_path_factory):
    """A page with two runs, a recipe, a failed column, notes, curves and maps; labels that need escaping."""
    folder = tmp_path_factory.mktemp("page")
    odd = folder / "odd.yaml"
    odd.write_text(
        f"extends: {tiny('full')}\nname: odd\nmodel: {{blocks: {{full: {{kind: '<script>bad()</script>'}}}}}}\n"
    )
    first = run("full", [4.0, 3.0, 2.5, 2.0], "run<b>1")
    second = run("ansa", [4.0, 3.1, 2.4, 1.9], "run-2")
    path = folder / "page.html"
    compare(Request([first, second, tiny("nsa"), str(odd)], html=path))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if browser_module.path() is None:
        pytest.skip("no Chromium here (chromium, chromium-browser, google-chrome or chrome on the PATH)")
    made = browser_module.Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


class Elements(HTMLParser):
    """Every tag with its attributes, and ids."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_needs_nothing_from_elsewhere_and_escapes_what_users_wrote(page):
    elements = Elements(page.read_text()).found
    for tag, attributes in elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    assert [tag for tag, _ in elements].count("script") == 1
    assert "b" not in [tag for tag, a in elements if "run<b>1" in a.values()]
    assert "bad()" in page.read_text()
    assert "<script>bad" not in page.read_text()
    assert not re.search(r"@import|url\((?!#)", page.read_text())


def test_ids_are_unique_so_that_no_drawing_borrows_from_another(page):
    ids = [attributes["id"] for _, attributes in Elements(page.read_text()).found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page.read_text()):
        assert "".join(reference) in ids


def test_curves_are_drawn_for_runs_alone(page, run, tiny):
    columns = [{"run": None}, {"run": {"training": [[4096, 0.5, 3.0]], "validation": [], "flops_per_token": 2.0}}, {}]
    drawn = curves(columns)
    assert list(drawn) == ["tokens", "time", "flops"]
    for svg in drawn.values():
        xml.etree.ElementTree.fromstring(svg)
        assert set(re.findall(r'class="(curve-\d+)"', svg)) == {"curve-1"}
    assert curves([{"run": None}]) == {}


def test_the_legend_tells_ten_curves_apart_without_colour():
    """Dashes come round after four curves; the mark is its own for each of ten."""
    run = {"training": [[4096, 0.5, 3.0]], "validation": [[4096, 0.5, 3.1]], "flops_per_token": 2.0}
    columns = [{"label": str(number), "run": run} for number in range(10)]
    marks = re.findall(r'<path d="(M[^"]+z)"', legend({n: column["label"] for n, column in enumerate(columns)}))
    assert len(set(marks)) == len(marks) == 10
    shapes = re.findall(
        r'<g id="tokens-curve-\d+-validation".*?<path id="[^"]*" d="([^"]*)"', curves(columns)["tokens"], re.S
    )
    assert len({"".join(shape.split()) for shape in shapes}) == 10


def test_smoothing_keeps_the_last_point_and_means_over_a_fiftieth():
    records = [[float(i), i / 2, float(i % 2)] for i in range(2000)]
    short = smoothed(records)
    assert len(short) <= 600
    assert short[-1] == [1999.0, 999.5, 0.5]
    assert smoothed([[1, 2, 3.0]]) == [[1, 2, 3.0]]


def test_opens_without_errors_and_without_requests(browser, page):
    browser.errors.clear(), browser.requests.clear()
    browser.open(page)
    assert browser.errors == []
    outside = [url for url in browser.requests if not url.startswith(("file:", "data:"))]
    assert outside == []
    assert "run-2 is not finished" in browser.evaluate("document.querySelector('.notes').textContent")
    assert browser.evaluate("document.querySelector('.notes').getBoundingClientRect().top") < 300
    assert browser.evaluate("document.querySelector('td.failed').textContent").count("<script>bad()")
    shown = "[...document.querySelectorAll('.figures svg')].filter(one => one.getClientRects().length).length"
    assert browser.evaluate(shown) == 6, "three curves, loss against cache, cache and FLOPs against context"
    browser.evaluate("document.querySelector('button.log').click()")
    assert browser.evaluate(shown) == 6, "the same with logarithmic axes"
    assert browser.evaluate("document.querySelector('.logarithmic svg').getClientRects().length") == 1
    assert browser.evaluate("document.querySelectorAll('.maps svg').length") == 4
    assert "so is what selection chooses" in browser.evaluate(
        "document.querySelector('h2:has(~ .maps) ~ p:has(+ .maps)').textContent"
    )


HEADS = "[...document.querySelectorAll('#costs thead [data-place]')].map(cell => cell.textContent)"


def test_a_row_sorts_the_columns(browser, page):
    browser.open(page)
    before = browser.evaluate(HEADS)
    values = (
        "[...document.querySelectorAll('#costs tr')].filter(row => row.textContent.startsWith('allocated, 4,096'))"
        ".map(row => [...row.querySelectorAll('[data-place]')].map(c => c.dataset.n ? Number(c.dataset.n) : null))[0]"
    )
    buttons = "[...document.querySelectorAll('#costs button.sort')]"
    click = f"{buttons}.find(button => button.textContent.startsWith('allocated, 4,096')).click()"
    browser.evaluate(click)
    up = browser.evaluate(values)
    assert up[:3] == sorted(up[:3])
    assert up[3] is None
    assert browser.evaluate(HEADS) == [before[1], before[0], before[2], before[3]]
    browser.evaluate(click)
    down = browser.evaluate(values)
    assert down[:3] == sorted(up[:3], reverse=True)
    assert down[3] is None
    browser.evaluate(click)
    assert browser.evaluate(HEADS) == before


def test_a_heading_sorts_the_runs(browser, page):
    browser.open(page)
    names = "[...document.querySelectorAll('#runs tbody th')].map(cell => cell.textContent)"
    click = "[...document.querySelectorAll('#runs button')].find(b => b.textContent.includes('loss, final')).click()"
    assert browser.evaluate(names) == ["run<b>1", "run-2"]
    browser.evaluate(click)
    assert browser.evaluate(names) == ["run-2", "run<b>1"]
    browser.evaluate(click)
    assert browser.evaluate(names) == ["run<b>1", "run-2"]


def test_the_legend_toggles_a_run_in_every_figure(browser, page):
    browser.open(page)
    shown = "[...document.querySelectorAll('g.curve-{}')].map(g => getComputedStyle(g).display !== 'none')"
    button = "document.querySelector('.toggles button[data-curve=\"curve-1\"]')"
    drawn = browser.evaluate(shown.format(1))
    assert set(drawn) == {True}
    assert len(drawn) == 15, "curves on linear and logarithmic axes, loss against cache, costs"
    browser.evaluate(f"{button}.click()")
    assert set(browser.evaluate(shown.format(1))) == {False}
    assert browser.evaluate(shown.format(0)) == drawn
    assert browser.evaluate(f"{button}.getAttribute('aria-pressed')") == "false"
    browser.evaluate(f"{button}.click()")
    assert browser.evaluate(shown.format(1)) == drawn


def test_rows_that_are_equal_are_folded(browser, page):
    browser.open(page)
    hidden = "[...document.querySelectorAll('#costs tr.equal')].map(row => row.getClientRects().length === 0)"
    folded = browser.evaluate(hidden)
    assert len(folded) >= 3
    assert set(folded) == {True}
    assert "embedding" in browser.evaluate("document.querySelector('#costs tr.equal').textContent")
    browser.evaluate("document.querySelector('button.fold').click()")
    assert set(browser.evaluate(hidden)) == {False}
    assert browser.evaluate("document.querySelector('button.fold').textContent").startswith("Hide ")


def test_a_wide_table_says_that_it_scrolls(browser, page):
    shown = "[...document.querySelectorAll('.hint')].map(one => !one.hidden)"
    for width, hints in ((2600, [False, False]), (390, [True, True])):
        browser.width(width)
        browser.open(page)
        assert browser.evaluate(shown) == hints
    browser.evaluate("const box = document.querySelector('.scroll'); box.scrollLeft = box.scrollWidth;")
    browser.wait("!document.querySelector('.scroll').classList.contains('more')")
    browser.width(1280)


def test_dark_pages_are_dark(browser, page):
    """The page and the text of the drawings take the scheme of the reader's system."""
    read = "[document.body, document.querySelector('.figures svg text')].map((one, n) => n ? "
    read += "getComputedStyle(one).fill : getComputedStyle(one).backgroundColor)"
    seen = []
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(page)
        seen.append([[int(part) for part in re.findall(r"\d+", colour)[:3]] for colour in browser.evaluate(read)])
    browser.call("Emulation.setEmulatedMedia", features=[])
    (light_page, light_text), (dark_page, dark_text) = seen
    assert min(light_page) > 240 > 60 > max(light_text)
    assert max(dark_page) < 40 < 200 < min(dark_text)


def test_says_where_its_numbers_come_from(page):
    text = page.read_text()
    for part in ("Where these numbers come from", "zoo compare ", "Python 3.", "Recipe of tiny_nsa", "n_selected"):
        assert part in text
    assert re.search(r"Made on \d{4}-\d\d-\d\d \d\d:\d\d UTC", text)


def test_the_verdict_comes_before_everything(page):
    text = page.read_text()
    order = ["class=verdicts", "class=notes", "<h2>Trained", "<h2>Costs against context", "<h2>Layers", "<h2>What they"]
    assert sorted(order, key=text.index) == order


@pytest.mark.parametrize(
    ("value", "text"), [(500e6, "500M"), (1.5e9, "1.5B"), (0, "0"), (100, "100"), (2e18, "2E"), (1000, "1K")]
)
def test_ticks_are_short(value, text):
    assert _short(decimal(value)) == text


def test_the_linear_axis_of_losses_shows_the_interesting_part():
    """A run that falls from 10 to 2: the axis ends near the losses after its first tenth."""
    training = [[n, n / 10, 2 + 8 * 0.9**n] for n in range(1, 101)]
    low, high = _interesting([(0, {"training": training, "validation": []})], (1.5, 10.5))
    assert 1.5 < low < 2 < 3.5 < high < 7


@pytest.mark.parametrize("width", [1280, 390])
def test_fits(browser, page, width):
    browser.width(width)
    browser.open(page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    outside = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg') && "
        f"e.getBoundingClientRect().right > {width} + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.evaluate(outside) == []


def test_prints(browser, page):
    browser.open(page)
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 1 <= pages <= 5


def test_costs_are_plotted_without_a_cache_and_without_a_column_that_fails(tiny, monkeypatch):
    """Of a block that caches nothing the axis of sizes is linear; one whose cost fails at some length is left out."""
    from zoo.report import cost_plots as module

    columns = load_columns([tiny("full"), tiny("nsa")])
    facts = comparison(columns)["columns"]
    real = module.model_cost

    def cost(model, seq_len):
        if model is columns[1].known_recipe.model and seq_len == 32:
            raise ZeroDivisionError
        return replace(real(model, seq_len), cache_held_bytes=0)

    monkeypatch.setattr(module, "model_cost", cost)
    for svg in module.cost_plots(columns, facts, [256, 4096]).values():
        assert set(re.findall(r'class="(curve-\d+)"', svg)) == {"curve-0"}
