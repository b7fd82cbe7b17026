"""Files x damages x commands: what each command says of a run folder, a cache or a recipe with one damaged file.

A verdict is `named` (a message with the file's name), `harmless` (the result of undamaged files), or a fault: `silent`
(another result and no word), `unnamed` (refused without the name), `traceback`, `hang`.

Run as a program, this file is the process behind `Server`.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FAULTS = ("silent", "unnamed", "traceback", "hang")
RECIPE = """\
extends: base.yaml
name: r
seed: 3
data:
  source: {kind: text, paths: [text]}
  tokenizer: {kind: bpe, vocab_size: 300}
  validation_fraction: 0.3
  workers: 1
  cache_dir: cache
train:
  duration: 4ba
  batch_size: 4
  workers: 0
  optimizer: {lr: 1e-2}
  schedule: {warmup: 1ba}
  checkpoint: {every: 2ba}
eval: {every: 4ba, batches: 2}
"""
BASE = """\
model:
  d_model: 16
  vocab_size: 300
  max_seq_len: 32
  ffn: {kind: swiglu, d_ff: 32}
  blocks:
    local: {kind: window, n_heads: 2, window: 8}
    full: {kind: full, n_heads: 2}
  layers: local full
"""
COMMANDS: dict[str, list[str]] = {
    "show": ["show", "run/recipe.yaml"],
    "show own": ["show", "r.yaml", "--json"],
    "show --pattern": ["show", "run", "--pattern", "layer=0", "--seq-len", "16", "-o", "p.svg"],
    "compare": ["compare", "run", "other", "--json"],
    "complete": ["train", "r.yaml", "--run-dir", "run"],
    "resume": ["train", "r.yaml", "--run-dir", "run", "--set", "train.duration=6ba"],
    "generate": ["generate", "run", "--prompt", "window", "--max-tokens", "3", "--temperature", "0"],
    "export": ["export", "run", "out"],
    "cost": ["cost", "run/recipe.yaml"],
    "data show": ["data", "show", "r.yaml", "--rows", "1"],
    "eval": ["eval", "run", "--tasks", "copy,loss_by_position", "--rows", "4", "--json"],
    "eval llama": ["eval", "llama", "--data", "d.yaml", "--json"],
    "import": ["import", "llama", "out"],
    "convert": ["convert", "run", "out", "--blocks", "blocks.yaml", "--layers", "wide full"],
    "start from": ["train", "r.yaml", "--run-dir", "new", "--set", "train.init_from=run"],
    "study report": ["study", "report", "study.yaml"],
}
LATER = ("eval", "eval llama", "import", "convert", "start from", "study report")  # given only the files that they read
# What the result of a command is, where it is not what it prints.
RESULTS = {
    "show --pattern": ["p.svg"],
    "complete": ["run/model.safetensors"],
    "resume": ["run/model.safetensors", "run/metrics.jsonl"],
    "export": ["out/model.safetensors", "out/config.json", "out/tokenizer.json", "out/modeling_zoo.py"],
    "eval": ["run/eval.json"],
    "eval llama": ["llama/eval.json"],
    "import": ["out/model.safetensors", "out/model.yaml", "out/tokenizer.json"],
    "convert": ["out/model.safetensors", "out/model.yaml", "out/tokenizer.json"],
    "start from": ["new/model.safetensors"],
    "study report": ["study/results.json"],
}
READ_LATER = {  # what a command of LATER reads: beginnings of names
    "eval": ("run/",),
    "eval llama": ("llama/", "d.yaml"),
    "import": ("llama/",),
    "convert": ("run/", "blocks.yaml"),
    "start from": ("run/", "r.yaml", "base.yaml"),
    "study report": ("study", "r.yaml", "base.yaml"),
}
FILES = (
    *("r.yaml", "base.yaml"),
    *("run/recipe.yaml", "run/model.yaml", "run/model.safetensors", "run/checkpoints/*ba4*.pt"),
    *("run/data.json", "run/metrics.jsonl", "run/summary.json", "run/environment.json", "run/log.txt", "run/.lock"),
    *("run/tokenizer.json", "run/tokenizer_config.json"),
    *("cache/text-*/counts.json", "cache/text-*/train/index.json", "cache/text-*/validation/index.json"),
    *("cache/text-*/train/*/*.zstd", "cache/text-*/train/*/*.mds"),
    *("cache/bpe-*/tokenizer.json", "cache/bpe-*/tokenizer_config.json", "cache/bpe-*/checksums.json"),
)
FILES_LATER = (
    *("run/eval.json", "blocks.yaml", "d.yaml", "study.yaml", "study/outcomes/a-seed1.json", "study/threads.json"),
    *("llama/config.json", "llama/model.safetensors", "llama/tokenizer.json", "llama/tokenizer_config.json"),
)
BLOCKS = "wide: {kind: window, n_heads: 2, window: 16}\n"
DATA = """\
data:
  source: {kind: text, paths: [text]}
  tokenizer: {kind: bpe, vocab_size: 300}
  validation_fraction: 0.3
  cache_dir: cache
"""
STUDY = """\
name: s
recipes:
  - {recipe: r.yaml, name: a}
  - {recipe: r.yaml, name: b, set: {model.layers: full*2}}
seeds: [1, 2]
jobs: 1
out: study
"""


def _write(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def _in_place_of(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def _flip(data: bytes) -> bytes:
    """One digit changed where there are some (a text stays valid), else one bit; in the middle of the file.

    An empty file, which the lock of a run is, gets a character.
    """
    if not data:
        return b"1"
    digits = [found.start() for found in re.finditer(rb"[1-8]", data)] if _is_text(data) else []
    if digits:
        at = digits[len(digits) // 2]
        return data[:at] + bytes([data[at] + 1]) + data[at + 1 :]
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _is_text(data: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode().isprintable() or b"\0" not in data
    return False


def _number(text: bytes) -> Callable[[bytes], bytes]:
    """The first number that is a whole value replaced; a file without one is cut by a byte."""
    value = re.compile(rb"(?<=[:\[] )-?\d[\d.e+-]*(?=[,\n}\]])")
    return lambda data: value.sub(text, data, count=1) if value.search(data) else data[:-1]


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut in half": _write(lambda data: data[: len(data) // 2]),
    "one character": _write(_flip),
    "empty": _write(lambda data: b""),
    "a list": _write(lambda data: b"[1, 2]\n"),
    "a string": _write(lambda data: b'"text"\n'),
    "null": _write(lambda data: b"null\n"),
    "huge number": _write(_number(b"1" + b"0" * 400)),
    "NaN": _write(_number(b"NaN")),
    "not UTF-8": _write(lambda data: data[: len(data) // 2] + b"\xff\xfe" + data[len(data) // 2 :]),
    "FIFO": _in_place_of(os.mkfifo),
    "folder": _in_place_of(os.mkdir),
    "link to nothing": _in_place_of(lambda path: os.symlink("nowhere", path)),
    "missing": Path.unlink,
}


@dataclass(frozen=True)
class Outcome:
    """What a command ended in.  rc: exit code, None if it hung.  result: hash of what it is asked for."""

    rc: int | None
    output: str
    result: str


@dataclass(frozen=True)
class Try:
    """One cell of the table."""

    file: str
    damage: str
    command: str
    verdict: str
    said: str

    def __str__(self) -> str:
        return f"{self.verdict:9} {self.file} | {self.damage} | {self.command} | {self.said}"


Run = Callable[[Path, str], Outcome]  # runs a command of COMMANDS in a folder


def make_template(folder: Path, run: Run) -> None:
    """A complete run of four batches with its cache and recipes, and an untouched copy of the run, `other`."""
    words = random.Random(1)
    (folder / "text").mkdir(parents=True)
    for i in range(24):
        text = " ".join(words.choice(["window", "latent", "block", "token", "head"]) for _ in range(80))
        (folder / "text" / f"{i:02}.txt").write_text(text)
    (folder / "r.yaml").write_text(RECIPE)
    (folder / "base.yaml").write_text(BASE)
    made = run(folder, "complete")
    assert made.rc == 0, made.output
    shutil.copytree(folder / "run", folder / "other")


def make_more(folder: Path) -> None:
    """Add what the commands of LATER read: a score, a study that is done, a folder of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, text in (("blocks.yaml", BLOCKS), ("d.yaml", DATA), ("study.yaml", STUDY)):
        (folder / name).write_text(text)
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder / "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "run" / name, folder / "llama" / name)
    for arguments in (["eval", "run", "--tasks", "copy", "--rows", "4"], ["study", "run", "study.yaml"]):
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def run_here(folder: Path, command: str) -> Outcome:
    """Run one command in `folder`, in this process: quick if it has imported the engine, but nothing ends a hang."""
    from zoo.cli import run

    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        for context in (contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)):
            stack.enter_context(context)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        try:
            code = run(COMMANDS[command])
        except Exception:
            traceback.print_exc(file=said)
            code = 70
    return Outcome(code, said.getvalue(), _result(folder, command, said.getvalue()))


class Server:
    """A process that imports the engine once and forks for each command; it never starts a thread itself.

    A process that has used the threads of tokenizers or torch, as a test process may have, must not fork: the child
    would wait for threads that it does not have.
    """

    def __enter__(self) -> "Server":
        quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
        environment = {name: value for name, value in os.environ.items() if name != "ZOO_DATA_CACHE"} | quiet
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, __file__], env=environment, text=True, **pipes)
        return self

    def __exit__(self, *error) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def run(self, folder: Path, command: str) -> Outcome:
        """Run one command in `folder`."""
        print(json.dumps([str(folder), command]), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    """Answer the lines of standard input, each a folder and a command, with outcomes."""
    import composer  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import zoo.cli
    import zoo.data.loading
    import zoo.evaluation.run
    import zoo.export.writing
    import zoo.inference.generate
    import zoo.interop.converting
    import zoo.interop.importing
    import zoo.report.maps
    import zoo.report.training
    import zoo.study.report
    import zoo.training.engine  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        folder, command = json.loads(line)
        print(json.dumps(asdict(_forked(Path(folder), command))), file=answers, flush=True)


def _forked(folder: Path, command: str, limit_s: float = 240.0) -> Outcome:
    """Run one command in a forked process, which is killed after `limit_s`: generous, for a busy machine."""
    output = folder / ".output"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of a fork beside threads
        pid = os.fork()
    if pid == 0:
        _in_child(folder, COMMANDS[command], output)
    ended = time.monotonic() + limit_s
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Outcome(None, output.read_text(errors="replace"), "")
        time.sleep(0.01)
    said = output.read_text(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(found[1]), said, _result(folder, command, said))


def _in_child(folder: Path, arguments: list[str], output: Path) -> None:
    code = 70
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number in (1, 2):
            os.dup2(descriptor, number)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from zoo.cli import run

        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        code = run(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _result(folder: Path, command: str, said: str) -> str:
    """What the command made, as a hash: files, or what it printed without notes and numbers of its own."""
    if command not in RESULTS:
        lines = [line for line in said.splitlines() if not line.startswith(("note:", "preparing", "training the bpe"))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    digest = hashlib.sha256()
    for name in RESULTS[command]:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b"missing"
        if name.endswith("metrics.jsonl"):
            content = b"\n".join(re.findall(rb'"(?:batch|loss|validation_loss)": [^,}]+', content))
        elif name.endswith("eval.json"):  # which also holds times
            content = b"\n".join(re.findall(rb'"value": [^,}]+', content))
        digest.update(content)
    return digest.hexdigest()


def verdict(file: str, found: Outcome, right: Outcome) -> str:
    """How a command took a damaged file.  right: its outcome without damage."""
    if found.rc is None:
        return "hang"
    if "Traceback (most recent call last)" in found.output or found.rc == 70:
        return "traceback"
    name = Path(file).name
    batch = re.fullmatch(r"ep\d+-ba(\d+)-rank0\.pt", name)  # messages may call a checkpoint by its batch
    # Lines that the command prints anyway, such as `zoo show run/recipe.yaml` to try next, name nothing.
    usual = set(right.output.splitlines())
    said = "\n".join(line for line in found.output.splitlines() if line not in usual)
    named = name in said or (batch is not None and f"checkpoint of batch {batch[1]}" in said)
    if found.rc == 0 and found.result == right.result:
        return "harmless"
    if found.rc == 0:
        return "named" if named else "silent"
    return "named" if named else "unnamed"


def cells(chosen: Callable[[str, str, str], bool] = lambda file, damage, command: True) -> list[tuple[str, str, str]]:
    """The chosen (file, damage, command), in an order whose beginning is a sample of the whole."""
    found = [
        (file, damage, command)
        for file in (*FILES, *FILES_LATER)
        for damage in DAMAGES
        for command in COMMANDS
        if _reads(command, file) and chosen(file, damage, command) and not meaningless(file, damage)
    ]
    random.Random(0).shuffle(found)
    return found


def tries(
    template: Path, work: Path, run: Run, right: Mapping[str, Outcome], of: list[tuple[str, str, str]]
) -> Iterator[Try]:
    """For each of `cells`, damage the file in a copy of the template and give it to the command.

    right: the outcome of each command without damage.
    """
    for pattern, damage, command in of:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(template, work)
        path = next(work.glob(pattern))
        DAMAGES[damage](path)
        found = run(work, command)
        lines = [line for line in found.output.splitlines() if line.strip()]
        kind = verdict(str(path.relative_to(work)), found, right[command])
        yield Try(pattern, damage, command, kind, (lines or [""])[-1][:300])
    shutil.rmtree(work, ignore_errors=True)


def _reads(command: str, file: str) -> bool:
    """The first commands are tried with all of the first files, the later ones with what they read."""
    return file.startswith(READ_LATER[command]) if command in LATER else file in FILES


def meaningless(file: str, damage: str) -> bool:
    """A digit changed in a file without checksums of ours is another recipe, or another model, not a damaged one.

    The user wrote the recipes; another program wrote the config and the weights of a transformers folder.  Where the
    digit contradicts another file (a size of the weights, a number that two tokens have), tests of `zoo import` say so.
    """
    written = ("r.yaml", "base.yaml", "blocks.yaml", "d.yaml", "study.yaml")
    return file in (*written, "llama/config.json", "llama/model.safetensors") and damage == "one character"


def summary(found: list[Try]) -> str:
    """Verdicts by command, and every fault in full."""
    kinds = ("named", "harmless", *FAULTS)
    rows = [["", *kinds, "all"]]
    for command in (*dict.fromkeys(one.command for one in found), "all"):
        of = [one for one in found if command in (one.command, "all")]
        rows.append([command, *(str(sum(one.verdict == kind for one in of)) for kind in kinds), str(len(of))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, *(str(one) for one in found if one.verdict in FAULTS)])


if __name__ == "__main__":
    serve()
