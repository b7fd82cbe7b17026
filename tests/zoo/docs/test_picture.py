"""The picture of README: drawn from the recipes and the benchmark, and the committed one is that."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from zoo.docs import picture
from zoo.recipe import load_recipe

ROOT = Path(__file__).parents[3]


def test_the_committed_picture_is_the_one_that_is_drawn():
    assert (ROOT / "docs" / picture.PATH).read_text(encoding="utf-8") == picture.picture(ROOT)


def test_it_has_a_cell_for_each_layer_and_a_point_for_each_measurement():
    drawn = ET.fromstring(picture.picture(ROOT))
    tags = [element.tag.rpartition("}")[2] for element in drawn.iter()]
    layers = sum(len(load_recipe(f"zoo:{name}").model.expanded()) for name in picture.RECIPES.values())
    assert tags.count("rect") == layers + len(picture.colours(ROOT))
    rows = json.loads((ROOT / "docs/benchmarks/decode_340m.json").read_text())["rows"]
    points = [row for row in rows if row["recipe"] in picture.CURVES and row["batch"] == picture.ROWS]
    assert tags.count("circle") == 2 * len(points) == 18
