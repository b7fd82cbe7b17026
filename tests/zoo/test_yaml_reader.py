"""YAML with places: what words mean, what is refused, `extends` and `--set`."""

import os
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import RecipeError
from zoo.recipe.yaml_reader import Place, read_recipe, read_text


def plain(text: str):
    return read_text(text, "x.yaml").plain()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-3", 0.001),
        ("3E4", 30000),
        ("15e9", 15_000_000_000),
        ("15_000", 15000),
        ("-2", -2),
        ("010", 10),
        (".5", 0.5),
        ("1.", 1.0),
        ("1.5e3", 1500.0),
        ("true", True),
        ("yes", "yes"),
        ("off", "off"),
        ("null", None),
        ("~", None),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("0x10", "0x10"),
        ("1e-3x", "1e-3x"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("9" * 100, "9" * 100),
    ],
)
def test_what_words_mean(word, value):
    read = plain(f"key: {word}")["key"]
    assert read == value
    assert type(read) is type(value)


def test_every_value_has_a_place():
    root = read_text("a: 1\nb:\n  - {c: x}\n  - 'q'\n", "x.yaml")
    entry = root.value["b"].value[0]
    assert root.value["a"].place == Place("x.yaml", 1, 4)
    assert root.value["b"].key == Place("x.yaml", 2, 1)
    assert (entry.value["c"].key, entry.value["c"].place) == (Place("x.yaml", 3, 6), Place("x.yaml", 3, 9))
    assert entry.value["c"].verbatim
    assert not root.value["b"].value[1].verbatim


def test_anchors_aliases_and_merge_keys():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {y: 9, z: 4}]}\nd: *a\n"
    assert plain(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 2, "z": 4},
        "d": {"x": 1, "y": 2},
    }


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)
MERGE_BOMB = "a0: &a0 {k0: {x: 1}}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 20)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml: the file is empty; a recipe is a mapping with the keys name, model, data, train."),
        ("# only a comment\n", "x.yaml: the file is empty"),
        ("- a\n", "x.yaml:1:1: a recipe is a mapping with the keys name, model, data, train; found a list."),
        ("just words", "x.yaml:1:1: a recipe is a mapping with the keys name, model, data, train; found 'just words'."),
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3:1: the key 'a' is given twice; first in line 1."),
        ("a:\n\tb: 1\n", "x.yaml:2:1: a tab is not allowed here; indent with spaces."),
        ("a: [1, 2\nb: 3\n", "x.yaml:2:2: not valid YAML: did not find expected ',' or ']'"),
        ("a: !!python/object/apply:os.system ['true']\n", "x.yaml:1:4: tags are not used in recipes; found "),
        ("a: !custom 1\n", "x.yaml:1:4: tags are not used in recipes; found '!custom'."),
        ("a: 1\n---\nb: 2\n", "x.yaml:2:1: not valid YAML: "),
        ("1: a\n", "x.yaml:1:1: a key must be text; found '1'."),
        ("? [a]\n: 1\n", "x.yaml:1:3: a key must be text."),
        ("a: *b\n", "x.yaml:1:4: not valid YAML: "),
        ("a: &a [*a]\n", "x.yaml:1:4: an alias stands inside its own anchor."),
        ("a: &a {<<: *a}\n", "x.yaml:1:4: an alias stands inside its own anchor."),
        ("a: {<<: 3}\n", "x.yaml:1:9: '<<' takes a mapping, or a list of mappings."),
        ("a: \x07\n", "x.yaml:1"),
        ("a: " + "[" * 50_000, "x.yaml:1:103: nested deeper than 100."),
        ("a: " + "{a: " * 50_000, "x.yaml:1:400: nested deeper than 100."),
        ("- " * 50_000 + "a", "x.yaml:1:"),
        (BOMB, "x.yaml:"),
        (MERGE_BOMB, "x.yaml:"),
    ],
)
def test_refused(text, message):
    start = time.process_time()
    with pytest.raises(RecipeError) as refused:
        read_text(text, "x.yaml")
    assert str(refused.value).startswith(message)
    assert time.process_time() - start < 5


def test_alias_bombs_say_so():
    for bomb in (BOMB, MERGE_BOMB):
        with pytest.raises(RecipeError, match="aliases expand this to more than 100,000 values"):
            read_text(bomb, "x.yaml")


@given(st.text(max_size=60) | st.text(alphabet="ab:{}[]-&*!<>|'\"#%@\n \t?,", max_size=60))
def test_random_text_gives_a_tree_or_a_clean_error(text):
    with suppress(RecipeError):
        assert isinstance(read_text(text, "x.yaml").plain(), dict)


def test_unreadable_files(tmp_path):
    def message(path) -> str:
        with pytest.raises(RecipeError) as refused:
            read_recipe(path)
        return str(refused.value)

    (tmp_path / "latin.yaml").write_bytes(b"name: a\nsummary: caf\xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * 3_000_000)
    assert ":2:13: not UTF-8 text: byte 0xe9" in message(tmp_path / "latin.yaml")
    assert "no such file" in message(tmp_path / "latn.yaml")
    assert message(tmp_path / "latn.yaml").endswith("Did you mean 'latin.yaml'?")
    assert "must be a file; found a folder" in message(tmp_path)
    assert message(tmp_path / "large.yaml").endswith("too large: more than 2,000,000 bytes.")
    assert message("/dev/zero") == "/dev/zero: must be a file; found a device."


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_extends_merges_a_chain_and_keeps_places(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, base="a: {x: 1, y: 2}\nb: [1, 2]\n", middle="extends: base.yaml\na: {y: 3}\n")
    write(tmp_path / "sub", top="extends: ../middle.yaml\na: {z: 4}\nb: [9]\n")
    root = read_recipe(tmp_path / "sub" / "top.yaml")
    assert root.plain() == {"a": {"x": 1, "y": 3, "z": 4}, "b": [9]}
    files = {key: node.place.file for key, node in root.value["a"].value.items()}
    names = {"x": "base", "y": "middle", "z": "sub/top"}
    assert files == {key: str(tmp_path / f"{name}.yaml") for key, name in names.items()}


def test_another_kind_replaces_the_whole_mapping(tmp_path):
    write(tmp_path, base="s: {kind: text, paths: [a]}\nt: {kind: text, paths: [a]}\n")
    write(tmp_path, top="extends: base.yaml\ns: {kind: mds, local: b}\nt: {kind: text, separator: c}\n")
    assert read_recipe(tmp_path / "top.yaml").plain() == {
        "s": {"kind": "mds", "local": "b"},
        "t": {"kind": "text", "paths": ["a"], "separator": "c"},
    }


def test_extends_refusals(tmp_path):
    write(
        tmp_path, a="extends: b.yaml\n", b="x: 1\nextends: a.yaml\n", me="extends: me.yaml\n", lost="extends: aa.yaml\n"
    )
    write(tmp_path, number="extends: [a]\n", broken="extends: bad.yaml\n", bad="x: 1\nx: 2\n")
    for name, message in {
        "a": r"b.yaml:2:10: extends: extends in a circle: \S+a.yaml -> \S+b.yaml -> \S+a.yaml",
        "me": "me.yaml:1:10: extends: extends in a circle",
        "lost": r"lost.yaml:1:10: extends: no such file: \S+aa.yaml. Did you mean 'a.yaml'",
        "number": "number.yaml:1:10: extends: must be the path of a recipe; found a list",
        "broken": "bad.yaml:2:1: the key 'x' is given twice",
    }.items():
        with pytest.raises(RecipeError, match=message):
            read_recipe(tmp_path / f"{name}.yaml")
    for i in range(30):
        write(tmp_path, **{f"chain{i}": f"extends: chain{i + 1}.yaml\n"})
    with pytest.raises(RecipeError, match="more than 20 files extend each other"):
        read_recipe(tmp_path / "chain0.yaml")


def test_set(tmp_path):
    write(tmp_path, a="a: {x: 1}\nl: [{y: 1}, 2]\nn:\n")
    overrides = ["a.x=1e-3", "a.new.deep=[1, {b: c}]", "l.0.y=text", "n.k=(a b)*2", "e="]
    root = read_recipe(tmp_path / "a.yaml", overrides)
    assert root.plain() == {
        "a": {"x": 0.001, "new": {"deep": [1, {"b": "c"}]}},
        "l": [{"y": "text"}, 2],
        "n": {"k": "(a b)*2"},
        "e": None,
    }
    assert root.value["a"].value["x"].place == Place("--set a.x=1e-3")


def test_set_of_bytes_that_are_no_text(tmp_path):
    write(tmp_path, a="summary: x\n")
    with pytest.raises(RecipeError, match=r"--set summary=caf\\udce9: not UTF-8 text\.$"):
        read_recipe(tmp_path / "a.yaml", [os.fsdecode(b"summary=caf\xe9")])


def test_set_refusals(tmp_path):
    write(tmp_path, a="a: {x: 1}\nl: [1]\n")
    with pytest.raises(RecipeError) as refused:
        read_recipe(tmp_path / "a.yaml", ["a", "=3", "a..b=1", "a.x.y=1", "l.1=2", "l.x=2", "a.x=[", "a.x=!!str 3"])
    assert [str(problem) for problem in refused.value.problems] == [
        "--set a: must be key.path=value, such as train.duration=100ba.",
        "--set =3: must be key.path=value, such as train.duration=100ba.",
        "--set a..b=1: must be key.path=value, such as train.duration=100ba.",
        "--set a.x.y=1: a.x: is 1, which has no key 'y'.",
        "--set l.1=2: l: must be the number of an entry, from 0 to 0; found '1'.",
        "--set l.x=2: l: must be the number of an entry, from 0 to 0; found 'x'.",
        str(refused.value.problems[6]),
        "--set a.x=!!str 3: tags are not used in recipes; found 'tag:yaml.org,2002:str'.",
    ]
    assert str(refused.value.problems[6]).startswith("--set a.x=[: not valid YAML: ")


def test_a_file_of_countless_keys_is_refused(tmp_path):
    (tmp_path / "many.yaml").write_text("".join(f"k{i}: {i}\n" for i in range(60_000)))
    with pytest.raises(RecipeError, match="more than 100,000 keys and values"):
        read_recipe(tmp_path / "many.yaml")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("nowhere", path), os.mkdir])
def test_what_is_extended_must_be_a_file(tmp_path, make):
    make(tmp_path / "base.yaml")
    (tmp_path / "a.yaml").write_text("extends: base.yaml\n")
    for name in ("a.yaml", "base.yaml"):
        with pytest.raises(RecipeError, match=r"base\.yaml.*\.$"):
            read_recipe(tmp_path / name)


def test_extending_a_name_with_nul(tmp_path):
    (tmp_path / "a.yaml").write_text('extends: "a\\0b"\n')
    with pytest.raises(RecipeError, match=r"a\.yaml:1:10: extends: cannot be read: embedded null byte"):
        read_recipe(tmp_path / "a.yaml")
