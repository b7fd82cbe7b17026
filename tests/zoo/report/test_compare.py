"""`zoo compare` on the terminal and as JSON: numbers, ratios, reach, notes, columns that fail."""

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from zoo import cli
from zoo.counting.model_cost import model_cost
from zoo.errors import RecipeError
from zoo.recipe import ModelConfig, load_recipe
from zoo.report.colours import Look
from zoo.report.columns import load_columns
from zoo.report.compare import Request, compare
from zoo.report.facts import comparison, default_seq_lens, distinct_blocks
from zoo.report.reach import reach
from zoo.report.rows import SETTINGS, Value, binary, decimal, rows
from zoo.report.strips import stretches, strip

ROOT = Path(__file__).parents[3]


def found(sources, *overrides, seq_lens=()):
    return comparison(load_columns(sources, overrides), seq_lens)


def test_numbers_are_those_of_the_cost_model_and_ratios_those_to_the_first(tiny):
    sources = [tiny("full"), tiny("ansa")]
    data = json.loads(compare(Request(sources, seq_lens=(256, 1000), json=True)))
    assert data["seq_lens"] == [256, 1000]
    for column, source in zip(data["columns"], sources, strict=True):
        cost = model_cost(load_recipe(source).model, 1000)
        assert column["parameters"] == cost.parameters
        assert column["flops_per_token"]["1000"] == cost.flops_per_token
        assert column["attention_share"]["1000"] == cost.flops_by_part["attention"] / cost.flops_per_token
        assert column["cache"]["held_bytes"]["1000"] == cost.cache_held_bytes
        assert column["cache"]["nominal_bytes"]["1000"] == cost.cache_nominal_bytes
    table = {(row["group"], row["label"]): row for row in data["rows"]}
    cache = table["cache of one row, bf16", "nominal, 1,000 tokens"]
    assert cache["ratios"] == [1.0, 0.5]
    assert cache["values"] == [column["cache"]["nominal_bytes"]["1000"] for column in data["columns"]]
    assert table["attention's share of them", "at 256 tokens"]["ratios"] == [None, None]
    by_kind = {label: row["values"] for (group, label), row in table.items() if group.endswith("by kind of layer")}
    assert list(by_kind) == [
        f"{kind}, {what}" for kind in ("full", "ansa.local", "ansa.global") for what in ("nominal", "allocated at 256")
    ]
    assert by_kind["full, nominal"] == [data["columns"][0]["cache"]["nominal_bytes_per_token"], None]
    held = sum(by_kind[f"ansa.{part}, allocated at 256"][1] for part in ("local", "global"))
    assert held == data["columns"][1]["cache"]["held_bytes"]["256"] / 256


def test_lengths_default_to_the_longest_context_and_beyond(tiny):
    assert found([tiny("full"), tiny("nsa")])["seq_lens"] == [256, 1024, 4096]


@pytest.mark.parametrize(
    ("own", "lengths"),
    [([8192], [8192, 32768, 131072]), ([32768], [8192, 32768, 131072]), ([131072], [8192, 32768, 131072]),
     ([40960], [2560, 10240, 40960]), ([1048576], [65536, 262144, 1048576]), ([256, 8192], [256, 8192, 32768, 131072])],
)  # fmt: skip
def test_lengths_stay_near_the_models_own_contexts(tiny, own, lengths):
    columns = [load_columns([tiny("full")], [f"model.max_seq_len={length}"])[0] for length in own]
    assert default_seq_lens(columns) == lengths


def test_the_verdict_stands_first_with_losses_before_costs(tiny, run):
    sources = [run("full", [4.0, 3.0]), run("ansa", [4.0, 2.5]), tiny("window")]
    data = found(sources)
    losses, parameters, cache, flops = data["verdict"]
    assert losses == (
        "Validation loss, lowest first: ansa 2.6000, full 3.1000 (+0.5000). "
        "Without several seeds of each, a small difference can be chance."
    )
    assert parameters.startswith("Parameters: 772.2K (full) to ")
    assert cache.startswith("Smallest cache: ")
    assert flops.startswith("Fewest forward FLOPs per token: ")
    held = {column["label"]: column["cache"]["held_bytes"]["4096"] for column in data["columns"]}
    smallest = min(held, key=held.get)
    assert f"{binary(held[smallest])} at 4,096 tokens (×{held[smallest] / held['full']:.2g} of full)" in cache
    assert compare(Request(sources)).startswith("Validation loss, lowest first: ansa")


def test_losses_that_do_not_compare_are_not_ranked(run):
    other = run("nsa", [4.0, 3.0], "other", ("data.validation_fraction=0.2",))
    assert found([run("full", [4.0, 3.1]), other])["verdict"][0] == (
        "The validation losses cannot be compared: the notes say why."
    )
    words = run("nsa", [4.0, 3.0], "words", ("data.tokenizer={kind: bpe, vocab_size: 264}",))
    assert found([run("full", [4.0, 3.1]), words])["verdict"][0].startswith(
        "Bits per byte of validation, lowest first: words 4.4727, full 4.6169 (+0.1443)."
    )
    shorter = run("nsa", [4.0, 3.0], "shorter")
    said = found([run("full", [4.0, 3.1, 3.0, 2.0]), shorter])["verdict"]
    assert said[1] == "The runs did not train on the same number of tokens."


def test_what_the_strips_do_not_show_is_a_row_where_it_differs(tiny, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(
        f"extends: {tiny('full')}\nname: other\nmodel: {{blocks: {{full: {{rope_theta: 1e6, qk_norm: true}}}}}}\n"
    )
    data = found([tiny("full"), str(other), tiny("gated_deltanet")])
    settings = {row.label: [value.text for value in row.values] for row in rows(data) if row.group == SETTINGS}
    assert settings["rope_theta"] == ["10,000", "1,000,000", "10,000"]
    assert settings["qk_norm"] == ["no", "yes", "no"]
    assert "d_model" not in settings
    assert not any(row.group == SETTINGS for row in rows(found([tiny("full"), tiny("full")])))


def test_short_is_a_line_for_each_with_the_costs_at_both_ends(tiny, run):
    lines = compare(Request([run("full", [4.0, 3.0]), tiny("nsa"), "nope.yaml"], short=True)).splitlines()
    table = lines[next(n for n, line in enumerate(lines) if "at 4,096" in line and "parameters" in line) + 1 :]
    assert [line.split()[0] for line in table] == ["full", "tiny_nsa", "nope"]
    assert table[0].split()[1] == "3.1000"
    assert table[2].split() == ["nope", "failed"]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("ABABABABAB", "0-9 ABAB ..."),
        ("AAABAAABAAABAA", "0-11 AAABAAAB ... 12-13 AA"),
        ("CCCAAAAAAAAA", "0-2 CCC 3-11 AA ..."),
        ("ABCDEFGHIJ", "0-9 ABCDEFGHIJ"),
        ("ABAB", "ABAB"),
        ("AAAAAAAAAB", "0-8 AA ... 9 B"),
    ],
)
def test_repeats_of_a_schedule_are_folded(schedule, expected):
    text = strip([Look(letter, ("#BBBBBB",)) for letter in schedule]).plain
    squeezed = re.sub(r"(?<=[A-Z]) +(?=[A-Z])", "", " ".join(text.split()))
    assert squeezed == expected


def test_every_layer_is_in_one_stretch():
    generator = random.Random(0)
    for _ in range(200):
        numbers = [generator.randrange(3) for _ in range(generator.randrange(1, 30))]
        numbers = numbers * generator.randrange(1, 4)
        rebuilt = [one.unit[(n - one.first) % len(one.unit)] for one in stretches(numbers)
                   for n in range(one.first, one.last + 1)]  # fmt: skip
        assert rebuilt == numbers


def test_a_failing_column_keeps_its_place_and_leaves_the_others(tiny, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"extends: {tiny('full')}\nname: broken\nmodel: {{layers: fulll*4}}\n")
    data = found([tiny("full"), str(broken), tiny("nsa"), str(tmp_path)])
    errors = [column["error"] for column in data["columns"]]
    assert errors[0] is errors[2] is None
    assert "unknown block 'fulll'; known: full. Did you mean 'full'?" in errors[1]
    assert errors[3] == f"{tmp_path / 'recipe.yaml'}: no such file; not a run folder"
    for row in rows(data):
        if not row.group.endswith("by kind of layer"):  # a column has a value for its own kinds only
            assert [value is None for value in row.values] == [False, True, False, True], row.label
    text = compare(Request([tiny("full"), str(broken)]))
    assert "failed: broken:" in text  # the rest is folded, by how long the path is


def test_no_ratios_where_the_first_column_failed(tiny):
    data = found(["nope.yaml", tiny("full"), tiny("nsa")])
    assert all(value is None or value.ratio is None for row in rows(data) for value in row.values)
    assert data["notes"][0].startswith("nope failed, so nothing is stated as a ratio")


def test_a_block_whose_cost_fails_takes_only_its_column(tiny, monkeypatch):
    from zoo.blocks.kinds.nsa import NSAConfig

    def cost(self, *arguments):
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr(NSAConfig, "cost", cost)
    data = found([tiny("full"), tiny("nsa")])
    assert [column["error"] for column in data["columns"]] == [None, "ZeroDivisionError: no such luck"]
    assert "failed: tiny_nsa: ZeroDivisionError: no such luck" in compare(Request([tiny("full"), tiny("nsa")]))
    assert data["notes"] == []


def test_a_block_whose_fields_or_patterns_fail_takes_only_its_column(tiny, monkeypatch):
    """Errors of another package's code, of any type: while its recipe is read, and while its patterns are asked for."""
    from zoo.blocks.kinds.nsa import NSAConfig
    from zoo.report import columns

    def fails(*arguments, **options):
        raise KeyError("of another package")

    with monkeypatch.context() as patch:
        patch.setattr(columns, "load_recipe", lambda source, *rest: fails() if "nsa" in source else load_recipe(source))
        data = found([tiny("full"), tiny("nsa")])
        assert [column["error"] for column in data["columns"]] == [None, "KeyError: 'of another package'"]
    monkeypatch.setattr(NSAConfig, "grid_point", fails)
    loaded = load_columns([tiny("full"), tiny("nsa")])
    data = comparison(loaded)
    assert [column["error"] for column in data["columns"]] == [None, "KeyError: 'of another package'"]
    assert [kind for kind, *_ in distinct_blocks(loaded, data["columns"])] == ["full"], "for the page's maps"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics.jsonl", "{\n", "metrics.jsonl:1: damaged, not JSON"),
        (
            "metrics.jsonl",
            '{"batch": 1, "loss": 2.0}\n',
            "metrics.jsonl:1: damaged: tokens must be a number",
        ),
        ("environment.json", '{"dev', "environment.json: damaged, not JSON"),
    ],
)
def test_a_damaged_run_takes_only_its_column_and_shows_its_costs(tiny, run, file, text, message):
    folder = run("nsa", [4.0, 3.0])
    (Path(folder) / file).write_text(text)
    data = found([run("full", [4.0, 3.0]), folder])
    assert data["columns"][0]["error"] is None
    assert message in data["columns"][1]["error"]
    assert data["columns"][1]["parameters"]["total"] > 0
    assert "run" not in data["columns"][1]


def test_a_column_that_failed_after_it_was_read_is_in_the_notes(tiny, run):
    """Its costs and curves are shown, so what does not compare is said: training or measuring failed."""
    partly, whole = load_columns([run("nsa", [4.0], overrides=("model.ffn.d_ff=704",)), run("full", [4.0, 3.0])])
    failed = replace(partly, error="training failed: killed")
    notes = "\n".join(comparison([whole, failed])["notes"])
    for text in ("Other parameter count: nsa has 1.7", "nsa is not finished: 1 batches",
                 "Other number of training tokens: 4,096 in nsa, 8,192 in full"):  # fmt: skip
        assert text in notes
    first = comparison([failed, whole])
    assert "nothing is stated as a ratio" not in "\n".join(first["notes"])
    total = next(row for row in rows(first) if row.label == "total")
    assert total.values[1].ratio == pytest.approx(1 / total.values[0].number * total.values[1].number)


def test_a_run_that_diverged_says_so_and_its_json_is_json(tiny, run):
    data = json.loads(
        compare(Request([run("full", [4.0, 3.0]), run("nsa", [4.0, 3.0, 2.0, float("nan")])], json=True)),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert "nsa diverged: its loss is not a finite number at batch 4." in data["notes"]
    diverged = data["columns"][1]["run"]
    assert [record[2] for record in diverged["training"]] == [4.0, 3.0, 2.0]
    assert (diverged["final"], diverged["best"]["loss"]) == (None, 3.1)


def test_what_is_measured_is_measured_at_one_length_and_says_where(tiny, monkeypatch):
    from zoo.report import compare as module

    lengths, threads = [], [2]

    def measure(column, seq_len, overrides):
        lengths.append(seq_len)
        return column, {
            "device": "cpu",
            "precision": "fp32",
            "threads": threads[0],
            "seq_len": seq_len,
            "cache_bytes": 8,
        }

    monkeypatch.setattr(module, "measure_column", measure)
    sources = [tiny("full"), str(ROOT / "recipes/340m/full.yaml")]
    assert "measured on cpu, 2 threads, fp32, one row of 256 tokens" in as_text(sources, measure=True)
    assert lengths == [256, 256], "8,192 tokens of one against 256 of the other would not compare"
    threads[0] = 1
    assert "measured on cpu, 1 thread, fp32, one row of 99 tokens" in as_text(sources, measure=True, seq_lens=[99])


def as_text(sources, **options) -> str:
    """The text with single spaces, for a long line is folded."""
    return " ".join(compare(Request(sources, **options)).split())


@pytest.mark.parametrize("count", [1, 11])
def test_two_to_ten_columns(tiny, count):
    with pytest.raises(RecipeError, match=f"must name 2 to 10 recipes or runs; found {count}"):
        compare(Request([tiny("full")] * count))


def test_all_columns_failing_is_an_error_that_names_each():
    with pytest.raises(RecipeError, match=r"a: a.yaml: no such file\.\nb: b.yaml: no such file\."):
        compare(Request(["a.yaml", "b.yaml"]))


def test_all_columns_failing_as_they_are_counted_is_an_error_too(tiny, monkeypatch):
    from zoo.blocks.kinds.nsa import NSAConfig

    monkeypatch.setattr(NSAConfig, "cost", lambda *arguments: None)
    with pytest.raises(RecipeError, match=r"tiny_nsa \(.*\): AttributeError: .*\n.*#2: AttributeError"):
        compare(Request([tiny("nsa"), tiny("nsa")]))


def test_labels_are_unique(tiny, tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_text(f"extends: {tiny('full')}\nname: tiny_full\n")
    labels = [column.label for column in load_columns([tiny("full"), str(copy), tiny("full"), tiny("nsa")])]
    assert labels == [
        f"tiny_full ({tiny('full')})",
        f"tiny_full ({copy})",
        f"tiny_full ({tiny('full')}) #2",
        "tiny_nsa",
    ]


WINDOW = {"kind": "window", "n_heads": 2, "window": 8}
LOCAL = {
    "kind": "nsa",
    "n_heads": 4,
    "window": 1,
    "n_selected": 2,
    "n_init": 0,
    "selection_block": 16,
    "compression_block": 64,
}


@pytest.mark.parametrize(
    ("layers", "seq_len", "expected"),
    [
        ("w*4", 29, (4, ("window",), 29)),  # each layer adds 7 tokens: 0 -> 7 -> 14 -> 21 -> 28
        ("w*4", 30, (None, (), 29)),
        ("w*2 f w", 100, (3, ("full",), 100)),
        ("w f", 8, (1, ("window",), 8)),
        ("w f", 1, (0, (), 1)),
        ("n", 63, (None, (), 32)),  # no compression block is complete; the two latest selection blocks reach 31
        ("n", 64, (1, ("compression",), 64)),
        ("n", 32, (1, ("selection",), 32)),
        ("n*2", 48, (2, ("selection",), 48)),
    ],
)
def test_reach_follows_the_schedule(layers, seq_len, expected):
    blocks = {"w": WINDOW, "f": {"kind": "full", "n_heads": 2}, "n": LOCAL}
    settings = {"d_model": 64, "vocab_size": 300, "max_seq_len": 32, "ffn": {"d_ff": 96}, "blocks": blocks}
    result = reach(ModelConfig.model_validate({**settings, "layers": layers}), seq_len)
    assert (result.layers, result.through, result.tokens) == expected


def test_reach_is_what_a_built_model_lets_through():
    """Perturb the first token: the last hidden state changes exactly where the schedule is said to reach it."""
    import torch

    from zoo.model import build_model

    blocks = {"w": {**WINDOW, "window": 4}}
    settings = {"d_model": 16, "vocab_size": 50, "max_seq_len": 32, "ffn": {"d_ff": 16}, "blocks": blocks}
    config = ModelConfig.model_validate({**settings, "layers": "w*3"})
    model = build_model(config).double()
    for seq_len, reached in ((10, True), (11, False)):
        tokens_BT = torch.arange(seq_len)[None]
        changed_BT = tokens_BT.clone()
        changed_BT[0, 0] = 40
        same = torch.equal(model.hidden(tokens_BT)[0, -1], model.hidden(changed_BT)[0, -1])
        assert (reach(config, seq_len).layers is not None, not same) == (reached, reached)


def test_notes_say_what_is_not_comparable(tiny, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(
        f"extends: {tiny('full')}\nname: other\nmodel: {{ffn: {{d_ff: 704}}, vocab_size: 272, max_seq_len: 512}}\n"
        "data: {validation_fraction: 0.1}\n"
    )
    notes = "\n".join(found([tiny("full"), tiny("nsa"), str(other)])["notes"])
    for text in ("Other parameter count: other has 1.70 times", "Other tokenizer: other against", "Other data: other",
                 "Other sequence length: other"):  # fmt: skip
        assert text in notes
    assert "tiny_nsa" not in notes
    assert found([tiny("full"), tiny("nsa")])["notes"] == []


def test_what_a_recipe_leaves_unsaid_is_no_difference(tiny, tmp_path):
    unsaid = tmp_path / "unsaid.yaml"
    unsaid.write_text(f"extends: {tiny('full')}\nname: unsaid\ndata: {{source: null, tokenizer: null}}\n")
    assert found([tiny("full"), str(unsaid)])["notes"] == []
    one = tmp_path / "one.yaml"
    one.write_text(f"extends: {tiny('full')}\nname: one\ndata: {{source: null, sources: [{{kind: python-stdlib}}]}}\n")
    assert found([tiny("full"), str(one)])["notes"] == []


def test_runs_bring_their_losses_and_their_differences(tiny, run):
    long = run("full", [4.0, 3.0, 2.0, 2.5])
    short = run("nsa", [4.0, 3.0], overrides=("seed=5", "train.optimizer.lr=1e-2"))
    data = found([long, short, tiny("mla")])
    first, _, recipe = data["columns"]
    assert (first["run"]["final"]["loss"], first["run"]["best"]["loss"]) == (2.6, 2.6)
    assert first["run"]["tokens"] == 4 * 4096
    assert first["run"]["flops"] == 3 * 4 * 4096 * first["flops_per_token"]["256"]
    assert "run" not in recipe
    notes = "\n".join(data["notes"])
    for text in ("Other seed: nsa", "Other optimiser or learning-rate schedule: nsa",
                 "full is not finished: 4 batches so far, and no summary.json",
                 "Other number of training tokens: 8,192 in nsa, 16,384 in full"):  # fmt: skip
        assert text in notes
    table = {(row.group, row.label): row for row in rows(data)}
    best = table["trained", "validation loss, best"]
    assert [value and value.text for value in best.values] == ["2.6000", "3.1000", None]
    assert best.values[1].ratio == pytest.approx(3.1 / 2.6)
    assert not any(row.group.startswith("measured") for row in rows(data))


def test_best_is_not_always_final(run, tiny):
    data = found([run("full", [4.0, 2.0, 2.0, 3.0]), tiny("nsa")])
    assert data["columns"][0]["run"]["best"]["batch"] == 2
    assert data["columns"][0]["run"]["final"]["batch"] == 4


def test_overrides_reach_every_recipe_and_no_run(tiny, run):
    data = found([tiny("full"), tiny("nsa"), run("mla", [])], "model.d_model=256")
    assert data["columns"][1]["parameters"]["embedding"] == 264 * 256
    assert "a run is compared as it was trained" in data["columns"][2]["error"]


def test_a_narrow_terminal_gets_the_table_in_parts(tiny):
    columns = comparison(load_columns([tiny(name) for name in ("full", "mla", "gla", "nsa")]))
    from zoo.report.text import as_text

    for width, tables in ((80, 2), (60, 3), (40, 3), (200, 1)):
        parts = as_text(columns, width)
        table = parts[parts.index("parameters\n") :]
        assert table.count("tiny_full") == tables - 1, "the first column of each table after the first"
        assert all(len(line) <= width for line in parts.splitlines())
    lines = as_text(columns, 80).splitlines()
    assert any(line.startswith("  nsa, allocated at 256 ") for line in lines), "no label is folded"
    assert [line.split(",")[0].strip() for line in lines if ", nominal  " in line] == ["full", "mla", "gla"] + [
        "full", "nsa"], "a part has the rows of its own columns"  # fmt: skip


def test_a_letter_means_the_same_in_every_column(tiny):
    narrower = ("model.blocks.local.window=32",)
    columns = [load_columns([tiny("window")], overrides)[0] for overrides in ((), narrower)]
    columns += load_columns([tiny("full"), tiny("ansa"), tiny("window")])
    from zoo.report.text import as_text

    text = as_text(comparison(columns), 200)
    lines = text[text.index("\n\n") + 2 :].splitlines()  # after the verdict and the notes
    assert [line.split()[1:] for line in lines[:5]] == [
        list("AAAA"),
        list("BBBB"),
        list("CCCC"),
        list("DEDE"),
        list("AAAA"),
    ]
    assert [line.split(maxsplit=1) for line in lines[5:10]] == [
        ["A", "GQA, window 64"],
        ["B", "GQA, window 32"],
        ["C", "GQA, full"],
        ["D", "MLA, window 64"],
        ["E", "GLA, compression 16/16, selection 6 x 16 by 4 queries"],
    ]


def test_the_command(tiny, capsys):
    assert cli.run(["compare", tiny("full"), tiny("ansa"), "--seq-len", "512", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seq_lens"] == [512]
    assert cli.run(["compare", tiny("full")]) == 2
    assert "must name 2 to 10" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["missing/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_first(tiny, tmp_path, where):
    with pytest.raises(RecipeError, match=r"--html: must name a file in a folder that exists; found (a|no) folder"):
        compare(Request([tiny("full"), tiny("nsa")], html=tmp_path / where, train="5ba"))


@pytest.mark.slow
def test_a_schedule_of_thousands_of_layers_is_cut_in_the_strips(tiny, tmp_path):
    changes = ["model.layers=full ...", "model.n_layers=5000"]
    request = Request([tiny("full"), tiny("full")], changes, html=tmp_path / "page.html", maps=False)
    text = compare(request)
    assert text.endswith(f"page: {tmp_path / 'page.html'}\n")
    assert text.count(" 0-4999 A A ...\n") == 2
    page = (tmp_path / "page.html").read_text()
    assert page.count("and 4,744 more") == 2
    assert page.count("class=cell ") == 2 * 256 + 1


def test_recipes_alone_import_neither_torch_nor_matplotlib(tiny):
    code = f"from zoo import cli; import sys; cli.run(['compare', {tiny('full')!r}, {tiny('ansa')!r}]); "
    code += "print([name for name in ('torch', 'matplotlib', 'numpy') if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("write", "number", "text"),
    [(decimal, 0, "0"), (decimal, 999, "999"), (decimal, 999_960, "1.00M"), (decimal, 336_100_000, "336.1M"),
     (decimal, 12.5, "12.50"), (binary, 512, "512 B"), (binary, 24576, "24.00 KiB"), (binary, 2**50, "1,024 TiB")],
)  # fmt: skip
def test_numbers_are_short(write, number, text):
    assert write(number) == text


def test_small_ratios_are_not_nothing(tiny):
    texts = [Value(1, "", ratio).ratio_text for ratio in (None, 0.0, 0.0023, 0.0625, 0.5, 1, 99.4, 1234)]
    assert texts == ["", "×0.00", "×0.0023", "×0.062", "×0.50", "×1.00", "×99.40", "×1,234"]
    notes = found([str(ROOT / "recipes/340m/full.yaml"), tiny("full")])["notes"]
    assert notes[0] == "Other parameter count: tiny_full has 0.0023 times the parameters of full_340m."


def record(text="text", tokenizer="bytes", n_bytes=100) -> str:
    source = {"key": "data.source", "source": "text a.txt", "documents": 3, "bytes": n_bytes, "tokens": 100, "rows": 4}
    values = {"version": "0.1.0", "format": 2, "seq_len": 256, "train": [{**source, "content": text}], "validation": []}
    parts = {"vocabulary": tokenizer}
    used = {"kind": "byte", "vocab_size": 257, "end_of_document": 256, "parts": parts}
    return json.dumps(values | {"tokenizer": used})


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (record(), record(), []),
        (record("other"), record(), ["Other contents of the same data: full against nsa; the files had changed."]),
        (record("other", "learnt"), record(), ["Other contents of the same tokenizer: full against nsa; their losses"]),
        (
            record("other", "learnt", 101),
            record(),
            ["Other contents of the same data", "Other contents of the same"],
        ),
        (None, record(), ["full has no data.json: whether full against nsa read the same contents is not"]),
        (None, None, []),
    ],
)
def test_runs_that_read_other_contents_of_the_same_files(run, ours, theirs, expected):
    folders = [run("nsa", [3.0, 2.0]), run("full", [3.0, 2.0])]
    for folder, text in zip(folders, (theirs, ours), strict=True):
        if text:
            (Path(folder) / "data.json").write_text(text)
    notes = [note for note in found(folders)["notes"] if "contents" in note]
    assert len(notes) == len(expected)
    assert all(note.startswith(start) for note, start in zip(notes, expected, strict=True))


@pytest.mark.parametrize(
    ("theirs", "moved", "expected"),
    [
        (record(), ("data.source.paths=[elsewhere]",), []),
        (record("other"), ("data.source.paths=[elsewhere]",), ["Other data"]),
        (None, ("data.source.paths=[elsewhere]",), ["Other data"]),
        (record(), ("data.source.paths=[elsewhere]", "data.shuffle=false"), ["Other data"]),
        (record(), ("data.tokenizer={kind: huggingface, path: copy}",), []),
        (record(), ("data.tokenizer={kind: huggingface, path: copy}", "model.vocab_size=300"), ["Other tokenizer"]),
        (record("text", "learnt"), ("data.tokenizer={kind: huggingface, path: copy}",), ["Other tokenizer"]),
    ],
)
def test_runs_that_read_the_same_rows_from_other_places(run, theirs, moved, expected):
    text = ("data.source={kind: text, paths: [text]}", "data.tokenizer={kind: byte}")
    folders = [run("nsa", [3.0], overrides=text), run("full", [3.0], overrides=(*text, *moved))]
    for folder, data in zip(folders, (record(), theirs), strict=True):
        if data:
            (Path(folder) / "data.json").write_text(data)
    found_notes = [note.split(":")[0] for note in found(folders)["notes"]]
    assert [note for note in found_notes if note in ("Other data", "Other tokenizer")] == expected


def test_runs_whose_losses_are_of_other_rows_or_other_documents(run):
    folders = [run("nsa", [3.0]), run("full", [3.0], overrides=("model.document_mask=true", "eval.batches=3"))]
    notes = "\n".join(found(folders)["notes"])
    assert "Other validation rows: full against nsa; eval.batches or batches differ." in notes
    assert "Other document_mask: full against nsa; with it a token sees its own document alone" in notes


def test_runs_on_other_machines_or_on_one_that_is_not_known(run):
    folders = [Path(run("nsa", [3.0])), Path(run("full", [3.0]))]
    assert not [note for note in found(folders)["notes"] if "machine" in note or "wall" in note]
    (folders[0] / "environment.json").write_text('{"device": "cpu", "processes": 1}')
    assert "full has no environment.json: whether wall times of full and nsa compare" in str(found(folders)["notes"])
    (folders[1] / "environment.json").write_text('{"device": "NVIDIA H200", "processes": 1}')
    assert "Other machine or precision: wall time of full does not compare with that of" in str(found(folders)["notes"])


def test_a_complete_run_with_damaged_weights_is_told_of(run):
    folders = [Path(run("nsa", [3.0, 2.0])), Path(run("full", [3.0, 2.0]))]
    (folders[1] / "model.safetensors").write_bytes(b"x")
    (folders[1] / "summary.json").write_text('{"sha256": "0123"}')
    notes = "\n".join(found([str(folder) for folder in folders])["notes"])
    assert "full is not whole: " in notes
    assert "model.safetensors: damaged or replaced: SHA-256 is 2d711642b726b044..., summary.json says 0123...;" in notes
