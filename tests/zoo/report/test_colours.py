"""One colour for each pattern and each run."""

from zoo.docs.strip import strip as docs_strip
from zoo.recipe import load_recipe
from zoo.report.colours import COLOURS, MARKERS, OTHER, RUN_COLOURS, looks, of_patterns, patterns_of

BUILT_IN = ("full", "window", "compression", "selection", "dilated", "chunked", "moba")


def test_patterns_and_runs_have_colours_of_their_own():
    assert len({of_patterns([kind]) for kind in BUILT_IN}) == len(BUILT_IN)
    assert not {OTHER} & {colour for kind in BUILT_IN for colour in of_patterns([kind])}
    assert of_patterns([]) == of_patterns(["of another package"]) == (OTHER,)
    assert len(set(RUN_COLOURS)) == len(RUN_COLOURS) == len(MARKERS) == 10
    assert not set(COLOURS) & set(RUN_COLOURS)


def test_a_layer_shows_each_of_its_patterns_in_every_schedule(tiny):
    """NSA in stripes, on the terminal and on pages; the window of another block in the colour of NSA's window."""
    layers = [load_recipe(tiny(name)).model.expanded()[0] for name in ("window", "nsa", "gated_deltanet")]
    described = [{"attention": one.mixer.describe(), "patterns": patterns_of(one.mixer)} for one in layers]
    window, nsa, linear = looks(described).values()
    assert [look.letter for look in (window, nsa, linear)] == ["A", "B", "C"]
    assert nsa.colours == of_patterns(["compression", "selection", "window"])
    assert window.colours == nsa.colours[2:]
    assert linear.colours == (OTHER,)
    assert [style for _, style in nsa.cell()] == [f"black on {colour}" for colour in nsa.colours]
    assert "".join(text for text, _ in window.cell()) == " A "
    assert nsa.background.startswith(f"linear-gradient(90deg,{nsa.colours[0]} 0% 33.33%")
    assert nsa.background in docs_strip(layers[1:2], load_recipe(tiny("nsa")).model.d_model)


def test_a_layer_without_rotation_has_a_letter_of_its_own():
    """In the colour of its pattern: only its projection differs."""
    layers = load_recipe("zoo:models/smollm3_3b").model.expanded()[2:4]
    described = [{"attention": one.mixer.describe(), "patterns": patterns_of(one.mixer)} for one in layers]
    assert [one["attention"] for one in described] == ["GQA, full", "GQA, full, no rotation"]
    rotated, nope = looks(described).values()
    assert (rotated.letter, nope.letter) == ("A", "B")
    assert rotated.colours == nope.colours
