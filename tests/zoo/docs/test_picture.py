"""The picture of README: drawn from recipes, study and benchmark, and the committed files are that."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from zoo.docs import picture
from zoo.recipe import load_recipe

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return picture.pictures(ROOT)


def test_the_committed_pictures_are_those_that_are_drawn(drawn):
    for path, text in drawn.items():
        assert (ROOT / "docs" / path).read_text(encoding="utf-8") == text, path


@pytest.mark.parametrize("path", picture.FILES)
def test_it_has_a_cell_for_each_layer_a_band_for_each_loss_and_a_point_for_each_measurement(drawn, path):
    tags = [element.tag.rpartition("}")[2] for element in ET.fromstring(drawn[path]).iter()]
    layers = sum(len(load_recipe(f"zoo:{name}").model.expanded()) for name in picture.RECIPES.values())
    assert tags.count("rect") == layers + len(picture.colours(ROOT))
    rows = json.loads((ROOT / "docs/benchmarks/decode_340m.json").read_text())["rows"]
    points = [row for row in rows if row["recipe"] in picture.MEMORY.values() and row["batch"] == picture.ROWS]
    assert tags.count("circle") == len(points) == 9
    assert tags.count("polygon") == len(picture.LOSSES) == 3


@pytest.mark.parametrize("path", picture.FILES)
def test_curves_and_text_begin_and_end_inside_the_picture(drawn, path):
    layout, _ = picture.FILES[path]
    for element in ET.fromstring(drawn[path]).iter():
        tag = element.tag.rpartition("}")[2]
        points = element.get("points", "").replace(",", " ").split() if tag in ("polyline", "polygon") else []
        if tag == "text":
            size, letters = float(element.get("font-size", 0)), len(element.text or "")
            x, width = float(element.get("x", 0)), letters * size * 0.5  # of a sans-serif font, on average
            start = {"start": 0, "middle": width / 2, "end": width}[element.get("text-anchor", "start")]
            points = [str(x - start), element.get("y"), str(x - start + width), element.get("y")]
        assert all(0 <= float(x) <= layout.width for x in points[::2]), (element.text, points)
        assert all(0 <= float(y) <= layout.height for y in points[1::2]), (element.text, points)


def test_the_last_losses_are_those_of_the_page_of_the_study():
    page = (ROOT / "docs/studies/asa_small.md").read_text(encoding="utf-8")
    for label, run in picture.LOSSES.items():
        last = picture.curves(ROOT)[label][-1]
        name = run.partition("-lr=")[0]
        assert f"| `{name}` | {last.mean:.3f} ({last.low:.3f} to {last.high:.3f}) |" in page
