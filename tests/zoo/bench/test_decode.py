"""`zoo bench decode` on tiny recipes on the CPU: what it measures is what a generation does."""

import json

import pytest
import torch

from zoo import cli
from zoo.bench import decode
from zoo.bench.decode_report import as_markdown
from zoo.counting.cache_sizes import cache_sizes
from zoo.counting.memory_needed import bytes_needed
from zoo.model import build_model
from zoo.recipe import load_recipe

pytestmark = pytest.mark.slow
TINY = [f"recipes/tiny/{name}.yaml" for name in ("full", "ansa")]
SMALL = ("model.d_model=64", "model.ffn.d_ff=96", "model.n_layers=2")


@pytest.fixture(scope="module")
def report():
    """Of two recipes whose max_seq_len is below the longer context."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(decode, "STEPS", 3)
        patch.setattr(decode, "TOKENS_AT_ONCE", 600)
        settings = {"overrides": ["model.max_seq_len=256"], "command": "zoo bench decode ...", "say": lambda text: None}
        return decode.measure(TINY, [100, 300], [1, 3], **settings)


def test_every_recipe_at_every_context_and_batch(report):
    places = [(row["recipe"], row["context"], row["batch"]) for row in report["rows"]]
    grid = [(context, batch) for context in (100, 300) for batch in (1, 3)]
    assert places == [(name, *place) for name in ("tiny_full", "tiny_ansa") for place in grid]
    assert [row["prefill_rows"] for row in report["rows"]] == [1, 3, 1, 2] * 2
    for row in report["rows"]:
        assert row["skipped"] is None
        assert min(row["prefill_ms"], row["decode_ms"]) > 0
        assert row["decode_tokens_per_s"] == pytest.approx(1000 * row["batch"] / row["decode_ms"])
        assert (row["cuda_graph"], row["peak_bytes"]) == (False, None)
        model = load_recipe(f"recipes/tiny/{row['recipe'].removeprefix('tiny_')}.yaml").model
        sizes = cache_sizes(model, row["context"] + decode.ROOM, 4).values()
        assert row["cache_held_bytes"] == row["batch"] * sum(size.held_bytes for size in sizes)
        assert row["cache_nominal_bytes"] == row["batch"] * sum(size.nominal_bytes for size in sizes)


def test_rows_that_are_not_read_are_copies_and_go_on_like_them():
    """Rows 2 to 4 of 5 against a cache that has read every row."""
    model = build_model(load_recipe("recipes/tiny/ansa.yaml", [*SMALL, "model.layers=ansa*2"]))
    tokens_BT = torch.randint(264, (2, 90), generator=torch.Generator().manual_seed(2))
    copied, read = (model.new_cache(5, 100) for _ in range(2))
    model.next_logits(tokens_BT, copied.rows(0, 2))
    decode._repeat_rows(copied, 2)
    model.next_logits(tokens_BT[[0, 1, 0, 1, 0]], read)
    following = torch.randint(264, (5, 3), generator=torch.Generator().manual_seed(3))
    for column in following.split(1, 1):
        torch.testing.assert_close(model.next_logits(column, copied), model.next_logits(column, read))


def test_what_does_not_fit_is_skipped_with_the_reason(monkeypatch):
    model = build_model(load_recipe(TINY[0], SMALL[:2]))
    monkeypatch.setattr(decode, "free_bytes", lambda device: 2**20)
    row = decode._row(model, 4096, 2, print)
    assert row["skipped"].startswith("needs about 0.0 GiB, 0.0 GiB are free")
    assert "decode_ms" not in row

    def fails(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(decode, "free_bytes", lambda device: None)
    monkeypatch.setattr(decode, "_measured", fails)
    assert decode._row(model, 64, 2, print)["skipped"] == "out of memory"


def test_the_estimate_holds_the_cache_and_grows_with_what_is_read_at_once():
    model = load_recipe("recipes/340m/full.yaml").model
    cache = 2 * 24 * 2 * 4 * 64 * 131_072
    one, two = (bytes_needed(model, 131_072, 8, rows, 2) for rows in (1, 2))
    assert 8 * cache < one < two < 2 * one


def test_markdown_has_a_table_a_context_and_ratios_within_a_batch(report):
    text = as_markdown(report)
    assert text.count("\n## ") == 2
    assert "## 300 tokens" in text
    assert "zoo bench decode ..." in text
    lines = [line for line in text.splitlines() if line.startswith(("| 1 |", "| 3 |"))]
    assert len(lines) == 8
    assert all(line.count("|") == 11 for line in lines)
    assert sum("| 1.00x |" in line for line in lines) >= 4
    skipped = {**report, "rows": [{**report["rows"][0], "skipped": "out of memory"}]}
    line = next(line for line in as_markdown(skipped).splitlines() if "out of memory" in line)
    assert line.count("|") == 11


def test_the_command_writes_json_and_a_plot(report, tmp_path, monkeypatch, capsys):
    asked = {}

    def measured(paths, contexts, batches, **settings):
        asked.update(paths=list(paths), contexts=contexts, batches=batches, overrides=settings["overrides"])
        settings["save"](report)
        return report

    monkeypatch.setattr(decode, "measure", measured)
    files = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"), "--set", "seed=3"]
    assert cli.run(["bench", "decode", *TINY, "--context", "100,300", "--batch", "1,3", *files]) == 0
    assert asked == {"paths": TINY, "contexts": [100, 300], "batches": [1, 3], "overrides": ["seed=3"]}
    assert json.loads((tmp_path / "a.json").read_text()) == report
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "| batch | recipe |" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["8k", "0", "1,,2", ""])
def test_numbers_that_are_none_are_refused(text, capsys):
    assert cli.run(["bench", "decode", TINY[0], "--batch", text]) == 2
    assert "must be whole numbers from 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--json", "nowhere/a.json"), "no such folder: nowhere"),
        (("--json", "tests"), "is a folder"),
        (("--plot", "a.txt"), "must end in .png, .svg or .pdf"),
        (("--plot", "nowhere/a.png"), "no such folder: nowhere"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(options, message, monkeypatch, capsys):
    monkeypatch.setattr(decode, "measure", None)
    assert cli.run(["bench", "decode", TINY[0], *options]) == 2
    assert message in " ".join(capsys.readouterr().err.replace("\u2502", "").split())
