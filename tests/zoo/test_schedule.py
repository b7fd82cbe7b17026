"""The schedule's two spellings, its limits, and what it says about mistakes."""

import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import RecipeError
from zoo.recipe.schedule import MAX_LAYERS, Repeat, Use, expand, format_schedule, parse

names = st.sampled_from(["full", "local", "global_", "ansa.local", "ansa.global", "a-b"])
overrides = st.dictionaries(st.sampled_from(["window", "n_heads"]), st.integers(1, 9), min_size=1, max_size=2)
# A tree of names and (count, children) pairs: what both spellings can say.
trees = st.recursive(
    names, lambda children: st.tuples(st.integers(1, 4), st.lists(children, min_size=1, max_size=3)), max_leaves=8
)
schedules = st.lists(trees, min_size=1, max_size=4)


def as_string(tree) -> str:
    return tree if isinstance(tree, str) else f"({' '.join(as_string(child) for child in tree[1])})*{tree[0]}"


def as_list(tree):
    return tree if isinstance(tree, str) else {"repeat": tree[0], "of": [as_list(child) for child in tree[1]]}


def layers_of(tree) -> list[str]:
    return [tree] if isinstance(tree, str) else [name for child in tree[1] for name in layers_of(child)] * tree[0]


@given(schedules)
def test_spellings_agree(trees):
    string, listed = " ".join(map(as_string, trees)), list(map(as_list, trees))
    assert parse(string) == parse(listed)
    assert [str(use) for use in expand(string)] == [name for tree in trees for name in layers_of(tree)]


@given(schedules, st.booleans())
def test_printed_and_parsed_again(trees, fills):
    schedule = parse([*map(as_list, trees), *["..."] * fills])
    printed = format_schedule(schedule)
    assert isinstance(printed, str)
    assert parse(printed) == schedule


@given(schedules, overrides, st.integers(0, 4))
def test_overrides_survive_printing(trees, changed, place):
    listed = list(map(as_list, trees))
    listed.insert(place % (len(listed) + 1), {"repeat": 2, "of": [{"use": "ansa.local", "with": changed}]})
    printed = format_schedule(parse(listed))
    assert isinstance(printed, list)
    assert expand(printed) == expand(listed)
    assert Use("ansa", "local", changed) in expand(printed)


@given(st.lists(names, min_size=1, max_size=6), st.integers(1, 50))
def test_dots_fill_n_layers(pattern, times):
    text = ", ".join(pattern) + " ..."
    assert expand(text, len(pattern) * times) == expand(" ".join(pattern)) * times
    if len(pattern) > 1:
        with pytest.raises(RecipeError, match="does not come out even"):
            expand(text, len(pattern) * times + 1)


@given(st.lists(names, min_size=1, max_size=6), st.integers(1, 50))
def test_dots_and_cut_truncate(pattern, n_layers):
    whole = expand(" ".join(pattern)) * n_layers
    for spelling in (" ".join(pattern) + " ... cut", [*pattern, "... cut"], [*pattern, "...", "cut"]):
        schedule = parse(spelling)
        assert schedule.fills
        assert schedule.cuts
        assert expand(schedule, n_layers) == whole[:n_layers]
        printed = format_schedule(schedule)
        assert printed.endswith("... cut")
        assert parse(printed) == schedule


def test_cut_stands_behind_dots_only():
    assert [use.name for use in expand("cut local*2 cut")] == ["cut", "local", "local", "cut"]
    assert [use.name for use in expand("local cut ... cut", 3)] == ["local", "cut", "local"]
    listed = [{"use": "local", "with": {"window": 4}}, "cut", "...", "cut"]
    assert [use.name for use in expand(listed, 3)] == ["local", "cut", "local"]
    assert parse(format_schedule(parse(listed))) == parse(listed)
    for wrong in (
        "a ... cut b",
        "a ... cut cut",
        "a ... cut*2",
        "a ... (cut)",
        "a ... cut.left",
        ["a", "...", "cut", "b"],
    ):
        with pytest.raises(RecipeError, match=r"'\.\.\.' must be the last"):
            parse(wrong)
    with pytest.raises(RecipeError, match=r"'\.\.\.' needs n_layers"):
        expand("a b ... cut")


@given(st.text(alphabet="ab.*() ,12…\n-x%", max_size=40) | st.text(max_size=20))
def test_random_text_gives_layers_or_a_clean_error(text):
    with suppress(RecipeError):
        assert 1 <= len(expand(text)) <= MAX_LAYERS


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | names,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["repeat", "of", "use", "with", "x"]), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_random_structure_gives_layers_or_a_clean_error(value):
    with suppress(RecipeError):
        assert 1 <= len(expand(parse(value))) <= MAX_LAYERS


HUGE = {
    "repeats of repeats": "(a*1000000)*1000000",
    "a count of a million digits": "a*" + "9" * 1_000_000,
    "many zeros, then a count": "a*" + "0" * 100_000 + "99999",
    "deep parentheses": "(" * 10_000 + "a" + ")" * 10_000,
    "only opening parentheses": "(" * 100_000,
    "doubling": "(" * 60 + "a" + ")*2" * 60,
    "a long text": "a " * 100_000,
    "spaces without an operand": " " * 300_000 + "%",
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE.keys())
def test_huge_schedules_are_refused_quickly_with_little_memory(text):
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(RecipeError, match=r"10,000 layers|deeper than 64|unexpected '%'") as refused:
        parse(text)
    elapsed_s, peak_bytes = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(refused.value)) < 300
    assert elapsed_s < 3  # with tracing, which makes it several times slower
    assert peak_bytes < 200 * len(text) + 1e6


def test_deep_lists_are_refused():
    deep = ["a"]
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RecipeError, match="deeper than 64"):
        parse(deep)
    with pytest.raises(RecipeError, match="10,000 layers"):
        parse([{"repeat": 5001, "of": ["a", "a"]}])


def test_ten_thousand_layers_are_allowed():
    assert len(expand("(a b)*5000")) == MAX_LAYERS
    assert len(expand("a ...", MAX_LAYERS)) == MAX_LAYERS
    with pytest.raises(RecipeError, match="10,000 layers"):
        parse("(a b)*5000 a")


def test_a_list_of_names_is_a_schedule():
    assert parse(["full", "ansa.local", "local*2"]) == parse("full ansa.local local*2")
    assert parse(["a", ["b", "c"], {"repeat": 2, "of": "b"}]) == parse("a b c b*2")
    assert parse("(a)*2 (b c)").items == (Repeat(2, (Use("a"),)), Use("b"), Use("c"))


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("", "layers: the schedule is empty; name at least one block."),
        ("a (b", "layers: '(' is never closed (character 3)."),
        ("a) b", "layers: ')' without '(' (character 2)."),
        ("a ()", "layers: the parentheses are empty; name at least one block (character 3)."),
        ("a*0", "layers: a repeat count must be at least 1; found 0 (character 2)."),
        ("a*-1", "layers: a count after '*' must be a whole number from 1; found '-1' (character 2)."),
        ("a*1.5", "layers: unexpected '.'"),
        ("a*2*3", "layers: a count must follow a name or a ')' (character 4)."),
        ("*3 a", "layers: a count must follow a name or a ')' (character 1)."),
        ("3*a", "layers: expected a block name; found '3*a'. To repeat, write name*3 (character 1)."),
        ("a ... b", "layers: '...' must be the last thing in the schedule; only 'cut' may follow it (character 7)."),
        ("(a ...)", "layers: '...' cannot stand inside parentheses; it ends the schedule (character 4)."),
        ("...", "layers: the schedule is empty; name at least one block."),
        ([], "layers: the schedule is empty; name at least one block."),
        (7, "layers: must be a schedule string or a list; found 7."),
        (["a", 3], "layers[1]: must be a block name, a list, {repeat: 3, of: [...]} or"),
        ([{"repeat": True, "of": ["a"]}], "layers[0].repeat: repeat must be a whole number from 1; found true."),
        ([{"repeat": 2, "off": ["a"]}], "layers[0].off: unknown key 'off'; known: repeat, of. Did you mean 'of'?"),
        ([{"repeat": 2, "of": []}], "layers[0].of: this group is empty; name at least one block."),
        ([{"use": "a b"}], "layers[0].use: use must be one block name; found 'a b'."),
        ([{"use": "a", "with": 3}], "layers[0].with: with must be a mapping of fields to values; found 3."),
        (["...", "a"], "layers[0]: '...' must be the last entry of the schedule."),
    ],
)
def test_mistakes_are_named(spelling, message):
    with pytest.raises(RecipeError) as refused:
        parse(spelling)
    assert str(refused.value).startswith(message)


def test_every_mistake_of_a_list_is_reported():
    with pytest.raises(RecipeError) as refused:
        parse(["a*0", {"use": "a", "whit": {}}, {"repeat": "x", "of": ["a"]}])
    assert [problem.key for problem in refused.value.problems] == ["layers[0]", "layers[1].whit", "layers[2].repeat"]


def test_layers_must_agree_with_n_layers():
    with pytest.raises(RecipeError, match="the schedule has 3 layers, but n_layers is 4"):
        expand("a*3", 4)
    with pytest.raises(RecipeError, match="needs n_layers"):
        expand("a b ...")
    with pytest.raises(RecipeError, match="2 layers does not come out even in 5 layers; n_layers of 4 or 6 would"):
        expand("a b ...", 5)
    with pytest.raises(RecipeError, match="3 layers does not come out even in 2 layers; n_layers of 3 would"):
        expand("a b c ...", 2)
