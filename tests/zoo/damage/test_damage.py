"""Damaged files of a run, a recipe and a data cache: each is named in one line, or does no harm.

The short part gives each file one damage, in turn, and the command that reads it. The slow part gives each file all of
FAST. The whole table takes about an hour: ZOO_DAMAGE_TABLE=FILE pytest tests/zoo/damage -m slow  writes it to FILE.
"""

import importlib.util
import os
from pathlib import Path

import pytest

pytest.importorskip("composer")
_spec = importlib.util.spec_from_file_location("damage_table", Path(__file__).with_name("table.py"))
table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(table)

READERS = {
    "r.yaml": "show own",
    "base.yaml": "show own",
    "run/recipe.yaml": "compare",
    "run/model.yaml": "generate",
    "run/model.safetensors": "generate",
    "run/checkpoints/*ba4*.pt": "complete",
    "run/data.json": "complete",
    "run/metrics.jsonl": "compare",
    "run/summary.json": "complete",
    "run/environment.json": "compare",
    "run/tokenizer.json": "generate",
    "run/tokenizer_config.json": "generate",
    "cache/text-*/counts.json": "data show",
    "cache/text-*/train/index.json": "data show",
    "cache/text-*/train/*/*.zstd": "data show",
    "cache/text-*/train/*/*.mds": "data show",
    "cache/bpe-*/tokenizer.json": "data show",
}
FAST = ("a list", "FIFO", "link to nothing", "one character")
ONE_EACH = {file: FAST[i % len(FAST)] for i, file in enumerate(READERS)}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A complete run with its cache, in a folder whose path is short enough for sockets."""
    table.import_all()
    folder = tmp_path_factory.mktemp("damage") / "template"
    table.make_template(folder)
    return folder


@pytest.fixture(scope="module")
def right(template, tmp_path_factory) -> dict:
    """What the commands of the fast part do with undamaged files."""
    return {command: _right(template, tmp_path_factory, command) for command in set(READERS.values())}


def _right(template: Path, tmp_path_factory, command: str):
    work = tmp_path_factory.mktemp("right") / "work"
    table.shutil.copytree(template, work)
    found = table.run_command(work, command)
    assert found.rc == 0, (command, found.output)
    return found


@pytest.mark.timeout(900)
@pytest.mark.long  # forks: hangs where the test process has used the threads of tokenizers
def test_one_damage_of_each_file(template, right, tmp_path):
    def chosen(file: str, how: str, command: str) -> bool:
        return ONE_EACH.get(file) == how and READERS[file] == command

    found = list(table.tries(template, tmp_path / "work", right, chosen))
    assert len(found) == len(READERS)
    assert not [str(one) for one in found if one.verdict in table.FAULTS]
    assert sum(one.verdict == "named" for one in found) > len(found) // 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("damage", FAST)
def test_a_damaged_file_is_named_or_harmless(template, right, tmp_path, damage):
    def chosen(file: str, how: str, command: str) -> bool:
        return how == damage and READERS.get(file) == command

    found = list(table.tries(template, tmp_path / "work", right, chosen))
    assert len(found) >= len(READERS) - 2
    assert not [str(one) for one in found if one.verdict in table.FAULTS]
    assert sum(one.verdict == "named" for one in found) > len(found) // 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif("ZOO_DAMAGE_TABLE" not in os.environ, reason="an hour; ZOO_DAMAGE_TABLE names the file to write")
def test_the_whole_table(template, tmp_path_factory, tmp_path):
    right = {command: _right(template, tmp_path_factory, command) for command in table.COMMANDS}
    found = list(table.tries(template, tmp_path / "work", right))
    Path(os.environ["ZOO_DAMAGE_TABLE"]).write_text(
        "\n".join([table.summary(found), "", *(str(one) for one in found if one.verdict not in table.FAULTS)]) + "\n"
    )
    assert not [str(one) for one in found if one.verdict in table.FAULTS]


def test_a_verdict_of_each_kind():
    right = table.Outcome(0, "fine", "a")
    for outcome, expected in [
        (table.Outcome(None, "", ""), "hang"),
        (table.Outcome(70, "Traceback (most recent call last):\n run/x.json", ""), "traceback"),
        (table.Outcome(0, "fine", "a"), "harmless"),
        (table.Outcome(0, "fine", "b"), "silent"),
        (table.Outcome(0, "x.json was damaged", "b"), "named"),
        (table.Outcome(2, "x.json: damaged", "b"), "named"),
        (table.Outcome(2, "something is damaged", "b"), "unnamed"),
    ]:
        assert table.verdict("run/x.json", outcome, right) == expected
