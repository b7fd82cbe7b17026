"""Live examples of schedules on the hand-written pages."""

from pathlib import Path

import pytest

from zoo.docs import examples
from zoo.errors import ZooError

DOCS = Path(__file__).parents[3] / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}


def test_every_example_of_the_pages_comes_to_what_it_should():
    found = {name: examples.results(text, name) for name, text in PAGES.items()}
    assert len(found["recipes.md"]) >= 8
    assert len(found["grammar.md"]) >= 12
    assert "4 layers: full, local, local, global" in found["recipes.md"]
    assert any("Did you mean 'global'?" in line for line in found["grammar.md"])


def test_a_schedule_is_followed_by_its_strip():
    shown = examples.with_results("before\n\n```schedule\nlayers: local*2 global\n```\n\nafter\n", "page.md")
    assert shown.startswith("before\n\n```yaml\nlayers: local*2 global\n```\n")
    assert shown.count('class="zoo-cell"') == 3 + 2, "layers and legend"
    assert "3 layers: local, local, global" in shown
    assert shown.endswith("after\n")


def test_occurrences_that_differ_have_letters_of_their_own():
    shown = examples.with_results("```schedule\nlayers: [local, {use: local, with: {window: 9}}]\n```\n", "page.md")
    assert "window 512" in shown
    assert "window 9" in shown
    assert shown.count(">B</span>") == 2


def test_a_mistake_is_followed_by_its_message():
    shown = examples.with_results("```mistake\nlayers: loca\n```\n", "page.md")
    assert '<pre class="zoo-refused">model.layers: unknown block &#x27;loca&#x27;; known:' in shown


def test_a_page_with_a_wrong_example_is_refused():
    with pytest.raises(ZooError, match=r"page.md: this schedule is refused:\nlayers: loca\n.*unknown block 'loca'"):
        examples.with_results("```schedule\nlayers: loca\n```\n", "page.md")
    with pytest.raises(ZooError, match=r"page.md: this should be a mistake and is none:\nlayers: local"):
        examples.with_results("```mistake\nlayers: local\n```\n", "page.md")
