"""Run folders of others in a comparison: names and values of another kind, in the table and on the page."""

import json
import os
import shutil
from pathlib import Path

import pytest

from zoo.report.columns import load_columns
from zoo.report.compare import Request, compare
from zoo.report.facts import comparison

NAMES = [
    "<img src=x onerror=alert(1)>",
    'b"><svg onload=alert(2)>',
    "[link=https://example.org]name[/link]",
    "\x1b[31mred\x1b]8;;https:x\x07",
    "cost$\\frac{1}$",
    "right\u202etxt.exe",
    "two\nlines\rover",
]
KEYS = ("loss", "validation_loss", "tokens", "time_s", "tokens_per_s", "validation_bits_per_byte", "batch")
VALUES = ('"<script>alert(5)</script>"', "null", "[1]", "true", "1" + "0" * 400)


@pytest.fixture(scope="module")
def plain(run) -> str:
    return run("full", [4.0, 3.0])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_and_does_nothing(run, plain, tmp_path, monkeypatch, name):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal, where rich draws hyperlinks
    folder = tmp_path / name.replace("/", "")
    shutil.copytree(run("nsa", [4.0, 3.0]), folder)
    page = tmp_path / "page.html"
    said = compare(Request([str(folder), plain], html=page, maps=False))
    assert "\x1b]8" not in said
    assert not {"\r", "\u202e", "\x07"} & set(said)
    html = page.read_text()
    assert "<img src=x" not in html
    assert "<svg onload" not in html
    assert not {"\r", "\u202e", "\x07", "\x1b"} & set(html)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", VALUES)
def test_a_metric_of_another_kind_is_named_with_its_line(run, plain, key, value):
    folder = Path(run("nsa", [4.0, 3.0]))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if key in json.loads(line))
    lines[at] = json.dumps(json.loads(lines[at]) | {key: "@"}).replace('"@"', value)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    columns = comparison(load_columns([plain, folder]))["columns"]
    assert columns[0]["error"] is None
    assert f"metrics.jsonl:{at + 1}: damaged: {key} must be" in columns[1]["error"]


@pytest.mark.parametrize("key", ["tokens", "time_s", "tokens_per_s"])
def test_a_number_beyond_all_is_named(run, plain, key):
    folder = Path(run("nsa", [4.0, 3.0]))
    text = (folder / "metrics.jsonl").read_text()
    record = json.loads(text.splitlines()[0])
    (folder / "metrics.jsonl").write_text(json.dumps(record | {key: "@"}).replace('"@"', "1e400") + "\n")
    assert f"{key} must be" in comparison(load_columns([plain, folder]))["columns"][1]["error"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
@pytest.mark.parametrize("name", ["metrics.jsonl", "environment.json", "summary.json", "recipe.yaml"])
def test_what_stands_in_the_place_of_a_file_is_named(run, plain, name, make):
    folder = Path(run("nsa", [4.0, 3.0]))
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    assert name in comparison(load_columns([plain, folder]))["columns"][1]["error"]
