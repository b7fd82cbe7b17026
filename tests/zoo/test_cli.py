"""The command line: what it prints, its exit codes, and that no mistake of a user ends in a traceback."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import __version__, cli, training
from zoo.counting.model_cost import model_cost
from zoo.errors import ZooError
from zoo.recipe import load_recipe
from zoo.recipe.schema import recipe_schema

ROOT = Path(__file__).parents[2]
ANSA = str(ROOT / "recipes/ansa_340m.yaml")
BASE = str(ROOT / "recipes/340m/_base.yaml")


@pytest.fixture
def zoo(capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def zoo(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(list(arguments))
        return code, *capsys.readouterr()

    return zoo


def test_show_json_has_what_programs_read(zoo):
    code, out, err = zoo("show", ANSA, "--json")
    found, model = json.loads(out), load_recipe(ANSA).model
    assert (code, err) == (0, "")
    assert found["name"] == "ansa_340m"
    assert [layer["index"] for layer in found["layers"]] == list(range(24))
    assert [layer["block"] for layer in found["layers"]] == ["ansa.local", "ansa.global"] * 12
    assert {layer["kind"] for layer in found["layers"]} == {"ansa"}
    parts = {part: count for part, count in found["parameters"].items() if part != "total"}
    assert sum(parts.values()) == found["parameters"]["total"]
    assert found["flops_per_token"] == model_cost(model, 8192).flops_per_token
    # 24 layers keep a latent of 224 and a rotary key of 32, in bf16; local layers keep 512 tokens of them, and global
    # layers one pooled entry every 16 tokens as well, and for 4 heads the 64 blocks that were chosen last, int32.
    assert found["cache"]["nominal_bytes_per_token"] == 24 * 256 * 2
    elements = {seq_len: 12 * 256 * (512 + seq_len + seq_len // 16) for seq_len in (8192, 32768)}
    held = {str(seq_len): 2 * count + 12 * 4 * 64 * 4 for seq_len, count in elements.items()}
    assert found["cache"]["held_bytes"] == held


def test_show_prints_the_layers_the_parts_and_both_caches(zoo):
    code, out, err = zoo("show", ANSA, "--set", "model.layers=(ansa.local*2 ansa.global)*8")
    assert (code, err) == (0, "")
    assert "24 layers  0-23 A A B A A B ..." in out
    for text in (
        "MLA, window 512",
        "GLA, compression 16/16, selection 64 x 16",
        "embedding",
        "ffn",
        "nominal",
        "allocated",
    ):
        assert text in out
    assert f"{load_recipe(ANSA).model.d_model * 32000:,}" in out
    assert "\x1b" not in out, "no colour codes where nothing shows them"


def test_a_letter_stands_for_what_a_layer_attends_to_under_whatever_name(zoo):
    blocks = "{a: {kind: full, n_heads: 4}, b: {kind: window, n_heads: 4, window: 8}, c: {kind: full, n_heads: 4}}"
    settings = (f"model.blocks={blocks}", "model.layers=[a, b, c, {use: b, with: {window: 9}}]", "model.n_layers=4")
    _, out, _ = zoo("show", ANSA, *(word for setting in settings for word in ("--set", setting)))
    assert "4 layers  A B A C" in out


@pytest.mark.slow
def test_a_long_schedule_is_cut_in_text_and_whole_in_json(zoo):
    layers = ("--set", "model.n_layers=10000", "--set", "model.layers=ansa ...")
    assert "9,744 more" in zoo("show", ANSA, *layers)[1]
    assert len(json.loads(zoo("show", ANSA, *layers, "--json")[1])["layers"]) == 10_000


def test_notes_go_to_standard_error(zoo):
    code, out, err = zoo("show", ANSA, "--json", "--set", "model.blocks.spare={kind: full}")
    assert (code, err) == (0, f"note: {ANSA}: model.blocks: defined but not in the schedule: spare\n")
    assert json.loads(out)


@pytest.mark.parametrize("kind", ["attention", "full", "window", "mla", "gla", "nsa", "ansa"])
def test_blocks(zoo, kind):
    assert kind in zoo("blocks")[1]
    code, out, _ = zoo("blocks", kind)
    assert code == 0
    fields = json.loads(zoo("blocks", kind, "--json")[1])[kind]["schema"]["properties"]
    assert all(field in out for field in fields if field != "kind")


def test_schema_version_and_help(zoo):
    assert json.loads(zoo("schema")[1]) == recipe_schema()
    assert zoo("--version") == (0, f"zoo {__version__}\n", "")
    code, out, _ = zoo("--help")
    assert code == 0
    for command in ("train", "show", "blocks", "schema", "data"):
        assert command in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nope.yaml"), "nope.yaml: no such file."),
        (("show", "."), "recipe.yaml: no such file; . is neither a recipe nor a run folder; zoo runs"),
        (("train", "."), ".: must be a file; found a folder."),
        (("show", BASE), f"{BASE}:4:1: name: is required.\n"),
        (("show", ANSA, "--set", "seed"), "--set seed: must be key.path=value, such as train.duration=100ba.\n"),
        (("train", ANSA, "--set", "seed=-1"), "--set seed=-1: seed: must be at least 0; found -1.\n"),
        (("data", "show", ANSA, "--set", "sed=1"), "--set sed=1: sed: unknown key 'sed'; known: name,"),
        (("blocks", "anza"), "unknown block kind 'anza'; known: attention, full, window, "),
    ],
    ids=lambda value: " ".join(value[-2:])[-40:] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_bad_input_is_one_message_and_exit_code_2(zoo, arguments, message):
    code, out, err = zoo(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)


@pytest.mark.parametrize(
    "arguments", [["shw"], ["show"], ["show", ANSA, "--jsn"], ["data", "show", ANSA, "--rows", "0"]]
)
def test_usage_errors_have_exit_code_2(zoo, arguments):
    code, out, err = zoo(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


def test_train_gets_the_recipe_and_the_folder(zoo, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "train", lambda recipe, run_dir: calls.append((recipe, run_dir)))
    assert zoo("train", ANSA, "--set", "seed=5")[0] == 0
    assert zoo("train", ANSA, "--run-dir", "elsewhere")[0] == 0
    assert [(recipe.seed, run_dir) for recipe, run_dir in calls] == [
        (5, Path("runs/ansa_340m")),
        (17, Path("elsewhere")),
    ]


def test_exit_codes_of_failures(zoo, monkeypatch):
    class Interrupted(ZooError):
        exit_code = 130

    def fail(error):
        def train(recipe, run_dir):
            raise error

        monkeypatch.setattr(training, "train", train)
        return zoo("train", ANSA)

    assert fail(ZooError("the loss is not finite")) == (1, "", "the loss is not finite\n")
    assert fail(Interrupted("saved"))[0] == 130
    assert fail(KeyboardInterrupt())[0] == 130


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EROFS, "x.html: cannot be written: Read-only file system\n"),
        (errno.EACCES, "x.html: cannot be read or written: Permission denied\n"),
        (errno.EMFILE, "x.html: cannot be opened: Too many open files\n"),
        (errno.ENOENT, "x.html: cannot be used: No such file or directory\n"),
        (errno.ELOOP, "x.html: cannot be used: Too many levels of symbolic links\n"),
        (errno.ENOTDIR, "x.html: cannot be used: Not a directory\n"),
    ],
)
def test_what_the_system_refuses_is_one_line(zoo, monkeypatch, number, told):
    def train(recipe, run_dir):
        raise OSError(number, os.strerror(number), "x.html")

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: None)
    assert zoo("train", ANSA) == (1, "", told)
    monkeypatch.setenv("ZOO_TRACEBACK", "1")
    with pytest.raises(OSError, match=re.escape("x.html")):
        zoo("train", ANSA)


def test_what_the_system_says_of_no_file_is_a_bug(zoo, monkeypatch):
    def train(recipe, run_dir):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(OSError, match="Invalid argument"):
        zoo("train", ANSA)


OUTPUTS = {
    "a folder that takes no files": "/proc/x.html",
    "a name that is too long": f"{'a' * 300}.html",
    "a loop of links": "loop/x.html",
}


@pytest.mark.parametrize("to", OUTPUTS.values(), ids=OUTPUTS.keys())
@pytest.mark.parametrize(
    "command", [("compare", ANSA, "zoo:tiny/full", "--no-maps", "--html"), ("init",)], ids=lambda words: words[0]
)
def test_a_place_that_takes_no_file_is_one_line_that_names_it(zoo, monkeypatch, tmp_path, command, to):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: None)
    Path("loop").symlink_to("loop")
    code, _, told = zoo(*command, to.replace(".html", ".yaml") if command == ("init",) else to)
    assert code in (1, 2)
    assert told.count("\n") == 1
    assert ".writing-" not in told
    assert any(part in told for part in (Path(to).stem, "recipe.schema.json", "loop")), told


def buffered(wanted: bool) -> dict[str, str]:
    """The environment, in which Python holds its output back until it ends, or does not."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return environment if wanted else environment | {"PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("held", [True, False], ids=["buffered", "unbuffered"])
def test_a_reader_that_goes_away_is_no_error(held):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "zoo", "show", ANSA]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=buffered(held))
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("held", [True, False], ids=["buffered", "unbuffered"])
def test_output_that_a_full_disk_does_not_take_is_one_line(held):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "zoo", "show", ANSA]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=buffered(held))
    assert done.stderr == "standard output: cannot be written: No space left on device\n"
    assert done.returncode == 1


def test_a_signal_after_the_work_is_done_leaves_the_exit_code():
    code = (
        "import atexit, os, signal, sys; atexit.register(lambda: [os.kill(os.getpid(), n) for n in "
        "(signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]); sys.argv = ['zoo', '--version']; "
        "from zoo.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_zoo_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "show", "nope.yaml"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "nope.yaml: no such file.\n")


def test_show_says_what_each_kind_of_layer_caches(zoo):
    layers = ("--set", "model.layers=(ansa.local*2 ansa.global)*8")
    cache = json.loads(zoo("show", ANSA, "--json", *layers)[1])["cache"]
    local, world = cache["by_kind"]["ansa.local"], cache["by_kind"]["ansa.global"]
    assert (local["layers"], world["layers"]) == (16, 8)
    assert local["nominal_bytes_per_token"] == 16 * 256 * 2
    assert local["held_bytes"] == {"8192": 16 * 512 * 512, "32768": 16 * 512 * 512}
    assert local["held_bytes_per_token"]["32768"] == 16 * 512 * 512 / 32768
    for name in ("nominal_bytes", "held_bytes"):
        for length, total in cache[name].items():
            assert local[name][length] + world[name][length] == total
    out = zoo("show", ANSA, *layers)[1]
    assert [line.split() for line in out.splitlines() if "16 x ansa.local" in line] == [
        ["16", "x", "ansa.local", "64.0", "MiB", "256.0", "MiB", "8,192", "8,192"],
        ["16", "x", "ansa.local", "4.0", "MiB", "4.0", "MiB", "512", "128"],
    ]


def test_show_states_caches_at_lengths_of_the_models_own_context(zoo):
    """256 and 1,024 tokens of a model for 256; the JSON keeps the lengths that it has for every model."""
    tiny = str(ROOT / "recipes/tiny/full.yaml")
    line = next(line for line in zoo("show", tiny)[1].splitlines() if line.startswith("cache of one row"))
    assert " 256 tokens" in line
    assert " 1,024 tokens" in line
    assert list(json.loads(zoo("show", tiny, "--json")[1])["cache"]["held_bytes"]) == ["256", "1024", "8192", "32768"]
    far = zoo("show", tiny, "--set", "model.max_seq_len=131072")[1]
    assert " 32,768 tokens  131,072 tokens" in far


def test_show_and_compare_print_one_strip(zoo):
    """Short, repeated, with stretches between, and without repeats: `zoo show` prints what `zoo compare` does."""
    for layers in ("[g, l, l, g]", "l*3 (l*5 g)*4 g", "(l g)*12", "l g*2 l*2 g l*4 g*3 l*2 g"):
        settings = ["--set", "model.blocks={l: {kind: window, n_heads: 4, window: 8}, g: {kind: full, n_heads: 4}}"]
        settings += ["--set", f"model.layers={layers}", "--set", "model.n_layers=null"]
        shown = zoo("show", ANSA, *settings)[1].splitlines()
        strip = next(line for line in shown if " layers  " in line).partition(" layers  ")[2]
        compared = zoo("compare", ANSA, ANSA, *settings)[1]
        assert " ".join(strip.split()) in " ".join(compared.split()), layers  # long lines are wrapped
