"""Damaged files of a run, a recipe and a data cache: each is named in one line, or does no harm.

The short part gives each file one damage, in turn, and the command that reads it. The slow part gives each file all of
FAST. The whole table takes one to two hours: ZOO_DAMAGE_TABLE=FILE pytest tests/zoo/damage -m slow  writes it to FILE;
what is done is kept in FILE.jsonl, so that the same command continues after an interruption.
"""

import importlib.util
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

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
READERS_LATER = {
    "run/eval.json": "eval",
    "blocks.yaml": "convert",
    "llama/config.json": "import",
    "llama/model.safetensors": "import",
    "llama/tokenizer.json": "import",
    "study.yaml": "study report",
    "study/outcomes/a-seed1.json": "study report",
}
FAST = ("a list", "FIFO", "link to nothing", "one character")
ONE_EACH = {file: FAST[i % len(FAST)] for i, file in enumerate(READERS)}


def made(tmp_path_factory, run) -> Path:
    """A complete run with its cache, in a folder whose path is short enough for sockets."""
    folder = tmp_path_factory.mktemp("damage") / "template"
    table.make_template(folder, run)
    return folder


def undamaged(template: Path, work: Path, run, commands) -> dict:
    """What the commands do with undamaged files."""
    found = {}
    for command in commands:
        table.shutil.copytree(template, work)
        found[command] = run(work, command)
        table.shutil.rmtree(work)
        assert found[command].rc == 0, (command, found[command].output)
    return found


def check(found: list, fewest_named: float = 0.5) -> None:
    """No fault, and a share that is named: a command that reads nothing of a damaged file would prove little."""
    assert not [str(one) for one in found if one.verdict in table.FAULTS]
    assert sum(one.verdict == "named" for one in found) > len(found) * fewest_named


@pytest.mark.filterwarnings("ignore:.*leaked shared_memory:UserWarning")
def test_one_damage_of_each_file(tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.delenv("ZOO_DATA_CACHE", raising=False)
    torch.set_num_threads(1)
    template = made(tmp_path_factory, table.run_here)
    right = undamaged(template, tmp_path / "work", table.run_here, set(READERS.values()))
    cells = table.cells(lambda file, how, command: ONE_EACH.get(file) == how and READERS[file] == command)
    found = list(table.tries(template, tmp_path / "work", table.run_here, right, cells))
    assert len(found) == len(READERS)
    check(found)


@pytest.fixture(scope="module")
def server():
    with table.Server() as running:
        yield running.run


@pytest.fixture(scope="module")
def template(server, tmp_path_factory) -> Path:
    folder = made(tmp_path_factory, server)
    table.make_more(folder)
    return folder


@pytest.fixture(scope="module")
def right(server, template, tmp_path_factory) -> dict:
    commands = {*READERS.values(), *READERS_LATER.values()}
    return undamaged(template, tmp_path_factory.mktemp("right") / "work", server, commands)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("damage", FAST)
def test_a_damaged_file_is_named_or_harmless(server, template, right, tmp_path, damage):
    readers = READERS | READERS_LATER
    cells = table.cells(lambda file, how, command: how == damage and readers.get(file) == command)
    found = list(table.tries(template, tmp_path / "work", server, right, cells))
    assert len(found) == sum(not table.meaningless(file, damage) for file in readers)
    check(found)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
@pytest.mark.skipif("ZOO_DAMAGE_TABLE" not in os.environ, reason="an hour; ZOO_DAMAGE_TABLE names the file to write")
def test_the_whole_table(server, template, tmp_path):
    right = undamaged(template, tmp_path / "work", server, table.COMMANDS)
    written = Path(os.environ["ZOO_DAMAGE_TABLE"])
    kept = written.with_name(f"{written.name}.jsonl")
    lines = kept.read_text().splitlines() if kept.exists() else []
    found = [table.Try(**json.loads(line)) for line in lines]
    done = {(one.file, one.damage, one.command) for one in found}
    left = [cell for cell in table.cells() if cell not in done]
    with kept.open("a") as file:
        for one in table.tries(template, tmp_path / "work", server, right, left):
            found.append(one)
            print(json.dumps(asdict(one)), file=file, flush=True)
    others = (str(one) for one in found if one.verdict not in table.FAULTS)
    written.write_text("\n".join([table.summary(found), "", *others]) + "\n")
    check(found, fewest_named=0.2)  # most commands do not read most files


def test_a_verdict_of_each_kind():
    right = table.Outcome(0, "fine\nlook at run/x.json", "a")
    for outcome, expected in [
        (table.Outcome(None, "", ""), "hang"),
        (table.Outcome(70, "Traceback (most recent call last):\n run/x.json", ""), "traceback"),
        (table.Outcome(0, "fine", "a"), "harmless"),
        (table.Outcome(0, "fine", "b"), "silent"),
        (table.Outcome(0, "fine\nlook at run/x.json", "b"), "silent"),
        (table.Outcome(0, "x.json was damaged", "b"), "named"),
        (table.Outcome(2, "x.json: damaged", "b"), "named"),
        (table.Outcome(2, "something is damaged", "b"), "unnamed"),
        (table.Outcome(2, "look at run/x.json\nsomething is damaged", "b"), "unnamed"),
    ]:
        assert table.verdict("run/x.json", outcome, right) == expected
