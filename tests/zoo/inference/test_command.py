"""`zoo generate`: where prompts come from, what goes to which stream, exit codes."""

import io
import json
import os
import subprocess
import sys

import pytest

import zoo
from zoo import cli

PROMPT = "def attend(query):"


@pytest.fixture
def generate(run, capsys):
    """Run the command on the small untrained model: (exit code, standard output, standard error)."""

    def generate(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["generate", str(run()), "--device", "cpu", *arguments])
        return code, *capsys.readouterr()

    return generate


def expected(run, prompts, **settings) -> list[str]:
    return zoo.generate(run(), prompts, device="cpu", **settings).texts


def test_text_goes_to_standard_output_and_nothing_else(generate, run):
    found = generate("--prompt", PROMPT, "--max-tokens", "12", "--temperature", "0")
    assert found == (0, *(f"{text}\n" for text in expected(run, PROMPT, max_tokens=12, temperature=0)), "")


def test_every_setting_reaches_the_sampler(generate, run):
    settings = {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 8}
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    code, out, _ = generate("--prompt", PROMPT, "--max-tokens", "30", "--stop", "e", "--stop", "a", *options)
    assert code == 0
    assert [out.removesuffix("\n")] == expected(run, PROMPT, max_tokens=30, stop=["e", "a"], **settings)


def test_several_prompts_one_after_the_other(generate, run, tmp_path):
    (tmp_path / "prompt.txt").write_text("naïve\n")
    options = ("--max-tokens", "9", "--seed", "2")
    code, out, err = generate("--prompt", "a", "--prompt", "b", "--prompt-file", str(tmp_path / "prompt.txt"), *options)
    texts = expected(run, ["a", "b", "naïve\n"], max_tokens=9, seed=2)
    assert code == 0
    assert out == "".join(f"{text}\n" for text in texts)
    assert err == "-- prompt 1 of 3\n-- prompt 2 of 3\n-- prompt 3 of 3\n"


@pytest.mark.parametrize("spelling", [["-"], ["--prompt-file", "-"]])
def test_standard_input_is_a_prompt(generate, run, monkeypatch, spelling):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("naïve\n".encode())))
    code, out, _ = generate(*spelling, "--max-tokens", "5", "--echo")
    assert code == 0
    assert out == f"naïve\n{expected(run, 'naïve' + chr(10), max_tokens=5)[0]}\n"


def test_json_is_one_line_a_prompt(generate, run):
    code, out, _ = generate("--prompt", "a", "--prompt", "b", "--max-tokens", "4", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["prompt"] for line in lines] == ["a", "b"]
    assert [line["text"] for line in lines] == expected(run, ["a", "b"], max_tokens=4)
    assert all(line["finish"] in ("max_tokens", "end") and len(line["tokens"]) <= 4 for line in lines)


@pytest.mark.slow
def test_a_terminal_that_lacks_a_character_shows_another(run):
    command = [sys.executable, "-m", "zoo", "generate", str(run()), "--prompt", "naïve", "--echo", "--max-tokens", "2"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"na?ve")


def test_stats_go_to_standard_error(generate):
    code, out, err = generate("--prompt", "a", "--max-tokens", "4", "--stats")
    assert code == 0
    assert "tokens/s" not in out
    for text in ("prefill:", "decode:", "first token after", "ansa.local", "ansa.global", "nominal", "allocated"):
        assert text in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), 'no prompt: give --prompt "...", --prompt-file FILE, or - for standard input\n'),
        (("--prompt-file", "nope.txt"), "nope.txt: no such file\n"),
        (("--prompt", "x" * 257), "prompt 1 of 1: must have at most 256 tokens, the model's max_seq_len; found 257\n"),
        (("--prompt", "a\udcff"), "prompt 1 of 1: not UTF-8: found the byte 0xff as character 1, counted from 0\n"),
        (("--prompt", "a", "--top-p", "2"), "top_p: must be above 0 and at most 1; found 2.0\n"),
        (("--prompt", "a", "--max-tokens", "0"), "max_tokens: must be at least 1; found 0\n"),
        (("--prompt", "a", "--device", "tpu9"), "device: cannot use 'tpu9': "),
        (("--prompt", "a", "--device", "meta"), "device: nothing can be computed on 'meta'"),
        (("--prompt", "a", "--dtype", "bf17"), "unknown dtype 'bf17'; known: auto, bf16, fp16, fp32."),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_exit_code_2(generate, arguments, message):
    code, out, err = generate(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)


def test_a_file_that_is_not_utf_8_names_the_place(generate, tmp_path):
    (tmp_path / "latin").write_bytes(b"na\xefve")
    code, out, err = generate("--prompt-file", str(tmp_path / "latin"))
    assert (code, out, err) == (2, "", f"{tmp_path / 'latin'}: not UTF-8: byte 2, counted from 0, is 0xef\n")


def test_a_closed_standard_input_is_one_line(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert generate("-") == (2, "", "standard input: cannot be read: it is closed\n")


def test_a_prompt_in_the_place_of_the_run_is_one_line(capsys):
    assert cli.run(["generate", "once upon a time " * 20, "--prompt", "a"]) == 2
    assert capsys.readouterr().err.endswith("...': cannot be read: File name too long\n")


def test_a_numbered_cpu_is_the_cpu(run):
    assert zoo.generate(run(), "a", device="cpu:0", max_tokens=3).texts == expected(run, "a", max_tokens=3)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_one_line(run):
    command = [sys.executable, "-m", "zoo", "generate", str(run()), "--prompt", "a", "--max-tokens", "2"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "standard output: cannot be written: No space left on device\n")


def test_a_bare_word_is_no_prompt(generate):
    code, out, err = generate("def")
    assert (code, out) == (2, "")
    assert "must be - for standard input" in err
