"""Differences between plain values: which key, and both values in words."""

from zoo.recipe.differences import differences, in_words


def found(before, now):
    return {key: (one, other) for key, one, other in differences(before, now)}


def test_nested_keys_and_keys_of_one_side():
    before, now = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert found(before, now) == {"a.c": (2, 4), "d": (3, None), "e": (None, 5)}
    assert found(before, before) == {}


def test_mappings_in_lists_of_one_length_are_compared_one_by_one():
    before = {"sources": [{"paths": ["a"]}, {"paths": ["b"], "kind": "text"}]}
    now = {"sources": [{"paths": ["a"]}, {"paths": ["c"], "kind": "text"}]}
    assert found(before, now) == {"sources[1].paths": (["b"], ["c"])}
    assert list(found(before, {"sources": before["sources"][:1]})) == ["sources"]


def test_values_in_words_show_the_first_difference():
    assert in_words(["a"], ["a", "b"]) == ("['a']", "['a', 'b']")
    assert in_words(None, {"kind": "text", "separator": None}) == ("nothing", "{kind: 'text'}")
    long = [f"corpus/part-{i:03}.jsonl" for i in range(99)]
    before, now = in_words(long, [*long[:50], "corpus/other.jsonl", *long[51:]])
    assert before != now
    assert "corpus/other.jsonl" in now
    assert "part-050" in before
    assert max(len(before), len(now)) < 100
