"""The site as MkDocs builds it; skipped where the extra `docs` is not installed (`make docs` installs it)."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import cli
from zoo.docs import site as room
from zoo.errors import ZooError

ROOT = Path(__file__).parents[3]
_SPEC = importlib.util.spec_from_file_location("browser", ROOT / "tests" / "zoo" / "report" / "browser.py")
browser_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(browser_module)

needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in room._NEEDED), reason="needs the extra docs: make docs"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. In a process of its own: MkDocs and its plugins warn of their own deprecations."""
    out = tmp_path_factory.mktemp("site") / "out"
    command = [sys.executable, "-m", "zoo", "docs", "build", "--out", str(out)]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.fullmatch(rf"{out}: \d+ pages; open {out}/index.html, no server or network needed\n", done.stdout)
    return out


@needs_mkdocs
def test_equations_are_mathml(site):
    page = (site / "reference/blocks/nsa.html").read_text()
    assert page.count("<math") > 50
    assert "arithmatex" not in page
    assert "$$" not in page


@needs_mkdocs
def test_functions_in_equations_are_upright_and_set_off(site):
    page = (site / "reference/blocks/full.html").read_text()
    assert '<mo lspace="0.17em" rspace="0.1em">tanh</mo>' in page
    assert re.findall(r"<mi>[a-z]{2,}</mi>", page) == []


@needs_mkdocs
@pytest.mark.parametrize("kind", ["nsa", "mamba2"])
def test_a_block_page_shows_recipe_and_python_as_tabs(site, kind):
    page = (site / f"reference/blocks/{kind}.html").read_text()
    labels = re.findall(r'<label for="[^"]+">([^<]+)</label>', page[page.index('class="tabbed-labels"') :])
    assert labels[:2] == ["In a recipe", "In your own PyTorch model"]
    first, second = page.split('class="tabbed-block"')[1:3]
    assert f"minimal_{kind}.yaml" in first
    assert "Context" in second.partition('id="what-it-computes"')[0]


@needs_mkdocs
def test_python_docstrings_are_on_the_page(site):
    page = (site / "reference/python.html").read_text()
    for name in ("zoo.load_recipe", "zoo.build_model", "zoo.kernels.window_attention", "zoo.blocks.config.BlockConfig"):
        assert name in page
    assert "Read and check a recipe." in page


@needs_mkdocs
def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", page.read_text())
        assert [tag for tag in tags if re.search(r'(src|href)="(https?:)?//', tag)] == [], page


def _search(browser, words: str) -> None:
    """Type the words into the site's search."""
    query = "document.querySelector('[data-md-component=search-query]')"
    browser.evaluate(f"{query}.focus(); {query}.value = '{words}'; {query}.dispatchEvent(new KeyboardEvent('keyup'));")


@needs_mkdocs
def test_it_works_from_the_disk(site, tmp_path):
    """In headless Chromium: search answers without a server, nothing fails, and no page is wider than a phone."""
    if browser_module.path() is None:
        pytest.skip("no Chromium here (chromium, chromium-browser, google-chrome or chrome on the PATH)")
    browser = browser_module.Browser(tmp_path)
    try:
        browser.open(site / "index.html")
        _search(browser, "alternating")
        browser.wait("document.querySelectorAll('.md-search-result__link').length > 2")
        _search(browser, "learning rate")
        first = "document.querySelector('.md-search-result__link')?.getAttribute('href') ?? ''"
        browser.wait(f"({first}).includes('reference/keys.html')")
        browser.width(390)
        for page in ("index", "grammar", "reference/blocks/nsa", "reference/recipes/index", "reference/commands"):
            browser.open(site / f"{page}.html")
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390, page
        assert browser.errors == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:", "about:", "blob:"))] == []
    finally:
        browser.close()


@needs_mkdocs
def test_maps_are_part_of_the_page(site):
    page = (site / "reference/blocks/ansa.html").read_text()
    assert page.count('<span class="zoo-map"') == 2
    assert "currentColor" in page
    assert 'zoo-map" src' not in page


@needs_mkdocs
@pytest.mark.parametrize("latex", [r"a \nosuchcommand x", r"\begin{aligned} a &= b \end{aligned}", r"\left( a"])
def test_latex_that_cannot_be_shown_is_refused(latex):
    from zoo.docs.mathml import mathml

    with pytest.raises(ZooError, match=f"this LaTeX cannot be shown: {re.escape(latex)}: "):
        mathml(latex, display=False)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for out in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ZooError, match="holds other things"):
            room._check_folder(out)
    room._check_folder(tmp_path / "new")
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search_index.json").write_text("{}")
    room._check_folder(tmp_path)


def test_without_the_extra_it_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    for command in (["docs", "build"], ["docs", "serve"]):
        assert cli.run(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("zoo docs needs mkdocs, material, mkdocstrings, latex2mathml; to install them: ")
        assert err.endswith(
            "constraints.txt 'mkdocs-material>=9.6,<10' 'mkdocstrings[python]>=1.0' 'latex2mathml>=3.77'\n"
        )


def test_the_commands_import_nothing_heavy():
    code = "import zoo.cli.docs, sys; print(*{'torch', 'mkdocs', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""
