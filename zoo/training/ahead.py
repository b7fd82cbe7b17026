"""Compile kernels in other processes, while this one imports Composer and reads the recipe's data.

Triton compiles each kernel at its first call, one after the other: 14 s for an ansa layer if nothing is in its cache.
Here a process for each kind of layer makes one step with the shapes that training will have. Before it, a pass that
launches nothing (compile_only.py) compiles the kernels in several threads; the step compiles what that pass missed.
Training finds the compiled kernels in Triton's cache on disk. Training waits for these processes before its
first batch, because it would otherwise compile the same kernels again. With several devices the first process of each
machine starts them, and all wait.

If the pass fails, the step compiles all kernels. If a process fails, for example for lack of memory, training compiles
what it needs itself.
"""

import contextlib
import contextvars
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from zoo.child import python_module
from zoo.kernels.triton_cache import triton_cache
from zoo.processes import cores, sheltered

MOST = 6  # processes: each holds a CUDA context
MOST_THREADS = 8  # of a process: Triton's part in Python holds the interpreter's lock
MOST_TOKENS = 2**19  # of a step: two ansa layers of 340M keep 31 GB of them
WAIT_S = 120.0  # in all, in case a process hangs


class Ahead:
    """The processes that compile; none if that would gain nothing. A context manager, which ends them on exit."""

    def __init__(self, recipe):
        self.processes: list[subprocess.Popen] = []
        self.folder: tempfile.TemporaryDirectory | None = None
        jobs = _jobs(recipe) if _wanted(recipe) else []
        marks = {job: _mark(recipe, job) for job in jobs}
        todo = [job for job in jobs if not marks[job].exists()][:MOST]
        if not todo:
            return
        self.folder = tempfile.TemporaryDirectory(prefix="zoo-ahead-")
        path = Path(self.folder.name) / "recipe.yaml"
        path.write_text(recipe.dump(), encoding="utf-8")
        threads = max(1, min(MOST_THREADS, cores() // len(todo)))
        with sheltered():
            for job in todo:
                command = python_module("zoo.training.ahead", [str(path), str(job), str(marks[job]), str(threads)])
                null = subprocess.DEVNULL
                self.processes.append(subprocess.Popen(command, stdin=null, stdout=null, stderr=null))

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []
        if self.folder is not None:
            self.folder.cleanup()

    def wait(self) -> float:
        """Wait until all have ended, at most WAIT_S.  Returns the seconds it took."""
        start = time.monotonic()
        for process in self.processes:
            try:
                process.wait(max(0.0, start + WAIT_S - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return time.monotonic() - start

    def wait_with_all(self) -> None:
        """`wait`, until every process of this training has done so; a process group must be there if it has several."""
        from composer.utils import dist

        self.wait()
        dist.all_gather_object(None)


def _wanted(recipe) -> bool:
    """Whether training runs on GPUs, cores are free, and this is the first process of its machine.

    Plugins are imported only by the user's own process.
    """
    on_gpu = Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    return on_gpu and first and cores() >= 4 and recipe.train.kernels == "auto" and not recipe.plugins


def _rows(recipe) -> int:
    """Rows of a batch on one device."""
    return max(1, recipe.train.rows(recipe.seq_len) // int(os.environ.get("WORLD_SIZE", 1)))


def _jobs(recipe) -> list[int]:
    """The index of one layer of each kind; of those that share keys and values the first, which makes them."""
    first: dict = {}
    for layer in recipe.model.expanded():
        if layer.follows:
            continue
        first.setdefault((layer.mixer, layer.feed_forward), layer.index)
    return list(first.values())


def _mark(recipe, job: int) -> Path:
    """A file in Triton's cache that exists once this layer's kernels are compiled for these shapes and this code."""
    import importlib.metadata

    layer = recipe.model.expanded()[job]
    seq_len = recipe.seq_len
    kernels = Path(__file__).parents[1] / "kernels"
    code = [(str(path), path.stat().st_mtime_ns) for path in (Path(__file__), *sorted(kernels.rglob("*.py")))]
    model = recipe.model.model_dump(mode="json", exclude={"blocks", "layers"})
    train = _rows(recipe), recipe.train.micro_batch, recipe.train.precision, recipe.train.residual_stream
    parts = layer.mixer, layer.feed_forward, model, seq_len, train, code
    versions = [importlib.metadata.version(name) for name in ("torch", "triton")]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # its kernels, or plain PyTorch in their place
        versions.append(importlib.metadata.version("fla-core"))
    key = hashlib.sha256(repr((parts, versions)).encode()).hexdigest()[:24]
    return triton_cache() / f"zoo-compiled-{key}"


def compile_layer(recipe, index: int, device: str = "cuda", threads: int = 1) -> dict:
    """A forward and backward pass of one layer, the last norm and the loss, as training calls them; then one without
    gradients, as validation does.

    threads: if more than 1, a pass that launches nothing comes first and compiles kernels in so many threads.
    Returns what took how long, and why that pass failed if it did: see `_compile_in_threads`.
    """
    step = _layer_step(recipe, index, device)
    found = _compile_in_threads(step, threads) if threads > 1 else {}
    start = time.monotonic()
    step()
    return found | {"step_s": time.monotonic() - start}


def _compile_in_threads(step: Callable[[], None], threads: int) -> dict:
    """The pass that launches nothing.  Returns its seconds pass_s, and the number of its kernels or its error.

    Raises Poisoned if it left the GPU unusable for this process.
    """
    import torch

    from zoo.training.compile_only import can_compile_only, compile_only

    if not can_compile_only():
        return {}
    start = time.monotonic()
    found: dict = {}
    try:
        # In a context of its own, so that Triton's mode ends with it whatever happens.
        found["kernels"] = contextvars.copy_context().run(compile_only, step, threads)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError as error:
        raise Poisoned(str(error)) from error
    return found | {"pass_s": time.monotonic() - start}


class Poisoned(Exception):
    """An operation failed on the GPU, for example by an index out of range: no later one works in this process."""


def _layer_step(recipe, index: int, device: str) -> Callable[[], None]:
    """What `compile_layer` runs. Each call makes its own tensors, because the first one may leave some unwritten."""
    import torch

    from zoo.blocks.context import Context
    from zoo.kernels.documents import Documents
    from zoo.model import fused
    from zoo.model.layer import Layer, make_norm
    from zoo.training.device import resolve_precision

    config, seq_len = recipe.model, recipe.seq_len
    rows, part = _rows(recipe), recipe.train.micro_batch
    rows = rows if part == "auto" else min(rows, part)
    many = rows % 16 == 0 and 16 * seq_len <= MOST_TOKENS
    rows = 1 if rows == 1 else 16 if many else 2  # a number that Triton compiles the same for
    narrow = resolve_precision(recipe.train, device == "cuda") == "bf16"
    layer, norm = Layer(config, config.expanded()[index]).to(device), make_norm(config).to(device)
    shape = rows, seq_len, config.d_model
    stream_dtype = torch.bfloat16 if narrow and recipe.train.residual_stream == "bf16" else torch.float32

    def step() -> None:
        layer.zero_grad()
        norm.zero_grad()
        starts_BT = torch.zeros(rows, seq_len, dtype=torch.bool, device=device)
        starts_BT[:, 0] = True
        documents = Documents.from_starts(starts_BT, 2) if config.document_mask else None
        context = Context.for_tokens(rows, seq_len, device=device, documents=documents)
        bf16 = torch.autocast(device, torch.bfloat16, enabled=narrow)
        head_VC = torch.randn(config.vocab_size, config.d_model, device=device, requires_grad=True)
        labels_N = torch.zeros(4 * seq_len, dtype=torch.int64, device=device)

        def hidden(x_BTC: torch.Tensor) -> torch.Tensor:
            return norm(*layer(*layer(x_BTC, None, context), context))[1]

        def loss(hidden_BTC: torch.Tensor) -> torch.Tensor:
            hidden_NC = hidden_BTC.flatten(0, 1)[: len(labels_N)]
            return fused.linear_cross_entropy(
                hidden_NC, head_VC, labels_N[: len(hidden_NC)], config.logit_scale, config.logit_softcap
            )

        with bf16, torch.autograd.set_multithreading_enabled(False):
            x_BTC = torch.randn(shape, device=device).to(stream_dtype).requires_grad_()
            hidden_BTC = hidden(x_BTC)
            # Before the loss: threads compile these kernels while its kernel is imported, which takes a second.
            hidden_BTC.backward(torch.zeros_like(hidden_BTC))
            loss(hidden_BTC.detach().requires_grad_()).backward()
            with torch.no_grad():  # validation comes before the first step
                loss(hidden(x_BTC))

    return step


def main(path: str, index: str, mark: str, threads: str) -> None:
    """Compile the kernels of a layer, then create its mark, a JSON file of what took how long."""
    from zoo.processes import stay_with_parent
    from zoo.recipe import load_recipe

    start = time.monotonic()
    stay_with_parent()
    try:
        found = compile_layer(load_recipe(path), int(index), threads=int(threads))
    except Poisoned:  # once more in a new process, which takes this one's id and place
        command = python_module("zoo.training.ahead", [path, index, mark, "1"])
        os.execv(command[0], command)
    found = {"total_s": time.monotonic() - start} | found
    Path(mark).parent.mkdir(parents=True, exist_ok=True)
    Path(mark).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
