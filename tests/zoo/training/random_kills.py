"""Trainings that are killed at random moments, and resumed: they must end with the bits of an undisturbed run.

    python tests/zoo/training/random_kills.py FOLDER --tries 50 --seed 1 [--real]

A try draws how many processes train (one; two with ddp or fsdp2 over gloo), how many read rows, which signal, who gets
it (the training, its whole group, one rank, the launcher) and when, from the first import to the last file.  Afterwards
the same command must complete.  One line of JSON a try; exit code 1 if one failed.

The engine is imported once and processes are forked from it, so that a try takes seconds; with --real they are started
as users do, by `python -m zoo train`, torchrun and composer.  In place of a launcher a small one of the same habits.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from zoo.errors import ZooError
from zoo.runs.metrics import read_metrics

PATIENCE_S = 400.0  # of a machine that is shared with others
SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
BATCHES = 60
GRACE_S = 30.0  # of a launcher, between SIGTERM and SIGKILL
RECIPE = """\
name: tiny
seed: 3
model:
  d_model: 16
  vocab_size: 300
  max_seq_len: 32
  ffn: {{kind: swiglu, d_ff: 32}}
  blocks: {{full: {{kind: full, n_heads: 2}}}}
  layers: full*2
data:
  source: {{kind: text, paths: [{text}]}}
  tokenizer: {{kind: bpe, vocab_size: 290}}
  workers: 2
  validation_fraction: 0.2
train:
  duration: 60ba
  batch_size: 4
  optimizer: {{lr: 1e-2}}
  schedule: {{warmup: 2ba}}
  checkpoint: {{every: 15ba}}
eval: {{every: 20ba, batches: 8}}
"""


def make_recipe(folder: Path) -> Path:
    """A recipe whose training takes a second or two, with text beside it."""
    (folder / "text").mkdir(parents=True, exist_ok=True)
    words = ["window", "latent", "block", "token", "head", "layer", "gate", "rank"]
    for number in range(60):
        content = random.Random(number).choices(words, k=120)
        (folder / "text" / f"{number:02}.txt").write_text(" ".join(content))
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(text=folder / "text"))
    return path


class Run:
    """One command: its arguments, the processes that it starts, and what they print."""

    def __init__(self, arguments: list[str], ranks: int, said: Path, real: bool, launcher: str):
        self.ranks, self.said = ranks, said
        self.family: set[int] = set()  # all processes that were seen
        if real:
            self.leader = self._start(arguments, launcher)
        else:
            self.leader = os.fork()
            if self.leader == 0:
                os.setsid()
                self._to_file()
                self._serve(arguments)

    def _start(self, arguments: list[str], launcher: str) -> int:
        command = [sys.executable, "-m", "zoo", *arguments]
        if self.ranks > 1:
            module = {"torchrun": "torch.distributed.run", "composer": "composer.cli.launcher"}[launcher]
            option = "--nproc-per-node" if launcher == "torchrun" else "-n"
            port = ["--master-port" if launcher == "torchrun" else "--master_port", str(_free_port())]
            command = [sys.executable, "-m", module, option, str(self.ranks), *port, "-m", "zoo", *arguments]
        with open(self.said, "wb") as file:
            started = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        return started.pid

    def _to_file(self) -> None:
        descriptor = os.open(self.said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)

    def _serve(self, arguments: list[str]) -> None:
        """In the child: train, or launch those that do, and never return."""
        if self.ranks == 1:
            _train(arguments)
        port, members = _free_port(), []
        for rank in range(self.ranks):
            member = os.fork()
            if member == 0:
                os.setsid()  # as torchrun
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.ranks, "LOCAL_WORLD_SIZE": self.ranks}
                names |= {"NODE_RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "x"}
                os.environ.update({name: str(value) for name, value in names.items()})
                _train(arguments)
            members.append(member)
        _launch(members)

    def members(self) -> list[int]:
        """Pids of the trainings: the leader alone, or the ranks."""
        return [self.leader] if self.ranks == 1 else [pid for pid in _children(self.leader) if _trains(pid)]

    def wait(self) -> int | None:
        """The exit code, None if it hangs; all processes of the run have ended then."""
        end, family = time.monotonic() + PATIENCE_S, self.family
        while time.monotonic() < end:
            family |= {self.leader, *_descendants(self.leader)}
            pid, status = os.waitpid(self.leader, os.WNOHANG)
            if pid:
                while any(_lives(each) for each in family) and time.monotonic() < end:
                    time.sleep(0.02)
                return None if any(map(_lives, family)) else os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        for each in family:
            with contextlib.suppress(OSError):
                os.kill(each, signal.SIGKILL)
        return None


def _train(arguments: list[str]) -> None:
    import torch

    from zoo.cli import main

    torch.set_num_threads(1)  # makes the pool of threads anew; if two threads do that at once, torch aborts
    sys.argv = ["zoo", *arguments]
    main()


def _launch(members: list[int]) -> None:
    """Wait for the ranks; when one fails, or at a signal, end all as torchrun does: SIGTERM, later SIGKILL."""
    told = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: told.append(number))
    codes: dict[int, int] = {}
    deadline = None
    while len(codes) < len(members):
        for pid in set(members) - set(codes):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if deadline is None and (told or any(codes.values())):
            deadline = time.monotonic() + GRACE_S
            _tell(members, codes, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _tell(members, codes, signal.SIGKILL)
        time.sleep(0.02)
    os._exit(1 if told or any(codes.values()) else 0)


def _tell(members: list[int], ended: dict[int, int], number: int) -> None:
    for pid in set(members) - set(ended):
        with contextlib.suppress(OSError):
            os.killpg(pid, number)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def _lives(pid: int) -> bool:
    return bool(found := _stat(pid)) and found[0] != "Z"


def _children(pid: int) -> list[int]:
    processes = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [each for each in processes if (found := _stat(each)) and int(found[1]) == pid]


def _descendants(pid: int) -> set[int]:
    found = set(_children(pid))
    return found.union(*(_descendants(each) for each in found))


def _trains(pid: int) -> bool:
    try:
        return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def disturb(run: Run, number: str, whom: str, draw: random.Random) -> bool:
    """Send the signal; whether anybody was there to get it."""
    members, value = run.members(), getattr(signal, number)
    run.family |= {run.leader, *_descendants(run.leader)}  # those of a launcher that is killed are no longer its own
    targets = {"group": members, "rank": members and [draw.choice(members)], "launcher": [run.leader]}[whom]
    sent = False
    for pid in targets:
        with contextlib.suppress(OSError):
            if whom == "group":
                os.killpg(os.getpgid(pid), value)
            else:
                os.kill(pid, value)
            sent = True
    return sent


class Harness:
    """Undisturbed runs to compare with, and tries."""

    def __init__(self, folder: Path, seed: int, real: bool):
        self.folder, self.real, self.draw = folder, real, random.Random(seed)
        self.recipe = make_recipe(folder)
        self._straight: dict[tuple[int, str], tuple[str, dict, float]] = {}

    def run(self, name: str, ranks: int, parallelism: str, workers: int, cache: str = "cache") -> Run:
        sets = [f"train.parallelism={parallelism}", f"train.workers={workers}", f"data.cache_dir={self.folder / cache}"]
        arguments = ["train", str(self.recipe), "--run-dir", str(self.folder / name)]
        arguments += [part for each in sets for part in ("--set", each)]
        launcher = self.draw.choice(["torchrun", "composer"])
        return Run(arguments, ranks, self.folder / f"{name}.txt", self.real, launcher)

    def straight(self, ranks: int, parallelism: str) -> tuple[str, dict, float]:
        """Weights, metrics and seconds of an undisturbed run."""
        key = (ranks, parallelism)
        if key not in self._straight:
            name, begin = f"straight-{ranks}-{parallelism}", time.monotonic()
            code = self.run(name, ranks, parallelism, workers=1).wait()
            if code != 0:
                raise SystemExit(f"the undisturbed run failed: {(self.folder / f'{name}.txt').read_text()}")
            self._straight[key] = *self.result(name), time.monotonic() - begin
        return self._straight[key]

    def result(self, name: str) -> tuple[str, dict]:
        digest = hashlib.sha256((self.folder / name / "model.safetensors").read_bytes()).hexdigest()
        records = read_metrics(self.folder / name / "metrics.jsonl")
        kinds = ("loss", "validation_loss")
        return digest, {(kind, r["batch"]): r[kind] for r in records for kind in kinds if kind in r}

    def wait_for_a_moment(self, name: str, run: Run, seconds: float) -> str:
        """Sleep until a random moment: of the start, or soon after a random batch; returns it in words."""
        if self.draw.random() < 0.25:
            after = self.draw.uniform(0.0, seconds / 2)
            time.sleep(after)
            return f"after {after:.2f} s"
        batch, later = self.draw.randint(0, BATCHES), self.draw.uniform(0.0, 0.1)
        known = self.done(name) >= batch  # from an earlier session: this one has only begun
        while self.done(name) < batch and _lives(run.leader):
            time.sleep(0.01)
        time.sleep(later)
        return f"{later:.2f} s after the start" if known else f"{later:.2f} s after batch {batch}"

    def done(self, name: str) -> int:
        """Batches in the metrics of a run, -1 if there are none yet."""
        with contextlib.suppress(OSError, ZooError):
            return max((r["batch"] for r in read_metrics(self.folder / name / "metrics.jsonl")), default=-1)
        return -1

    def attempt(self, number: int) -> dict:
        """One try: kill once or twice, then complete."""
        draw, name = self.draw, f"try{number}"
        ranks, parallelism = draw.choice([(1, "ddp"), (1, "ddp"), (2, "ddp"), (2, "fsdp2")])
        digest, metrics, seconds = self.straight(ranks, parallelism)
        workers, fresh = draw.choice([0, 1, 2]), draw.random() < 0.25
        cache = f"cache{number}" if fresh else "cache"
        told, problems = [], []
        for kill in range(draw.choice([1, 1, 2])):
            signal_name = draw.choice(SIGNALS)
            whom = draw.choice(["group", "rank"] if ranks == 1 else ["group", "rank", "launcher"])
            run = self.run(f"{name}", ranks, parallelism, workers, cache)
            moment = self.wait_for_a_moment(name, run, seconds)
            sent = disturb(run, signal_name, whom, draw)
            code = run.wait()
            told.append(f"{signal_name} to {whom} {moment}: {code if sent else 'too late'}")
            said = (self.folder / f"{name}.txt").read_text(errors="replace")
            (self.folder / f"{name}.txt").rename(self.folder / f"{name}-{kill}.txt")
            if code is None:
                problems.append("hangs")
            if "Traceback" in said and not (self.real and ranks > 1):  # launchers print their own
                problems.append("traceback")
            complete = (self.folder / name / "summary.json").exists()  # Python ends, and no handler is left
            graceful = signal_name != "SIGKILL" and ranks == 1 and "batch" in moment and not complete
            if sent and graceful and code not in (0, 130):
                problems.append(f"exit code {code}")
        code = self.run(name, ranks, parallelism, workers, cache).wait()
        if code != 0:
            problems.append(f"does not go on: {code}")
        elif self.result(name) != (digest, metrics):
            problems.append("other bits" if self.result(name)[0] != digest else "other metrics")
        found = {"try": number, "ranks": ranks, "parallelism": parallelism, "workers": workers, "fresh_data": fresh}
        return found | {"kills": told, "problems": problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if not chosen.real:
        import torch

        import zoo.training.engine  # noqa: F401

        torch.set_num_threads(1)
    harness, failed = Harness(chosen.folder.absolute(), chosen.seed, chosen.real), 0
    for number in range(chosen.tries):
        found = harness.attempt(number)
        failed += bool(found["problems"])
        print(json.dumps(found), flush=True)
    print(f"{chosen.tries - failed} of {chosen.tries} ended with the same bits", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
