"""`zoo bench kernels`: times of every attention operation, of full attention, and this GPU's own ceilings.

Medians of `triton.testing.do_bench`, in eager mode: what a training step without torch.compile pays; backward runs on
the calling thread, as in `zoo train`. With `graph`, also forward and backward captured as one CUDA graph and replayed,
ours and the baseline alike: a short row waits for Python otherwise. The ceilings, a dense bf16 product and a copy, are
measured in the same run.
"""

import datetime
import platform
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from zoo.bench.cases import FULL, GLOBAL, LOCAL, SETTINGS, Case, Inputs, Tensors, cases
from zoo.bench.peers import peer_cases
from zoo.errors import ZooError

PAIR = "pair"
CONFIGS = (*SETTINGS, PAIR)
MEMORY_LENGTHS = (32_768, 65_536, 131_072)


def measure(
    configs: Iterable[str],
    seq_lens: Iterable[int],
    *,
    peers: bool,
    command: str,
    graph: bool = False,
    say: Callable[[str], None] = print,
    save: Callable[[dict], object] = lambda report: None,
) -> dict:
    """Time the settings at the lengths.  Returns the report as plain data: see `zoo.bench.report`.

    say: told what is being measured.  save: given the report after every part of it.
    Raises ZooError without a GPU or for an unknown setting.
    """
    configs, seq_lens = list(dict.fromkeys(configs)), list(dict.fromkeys(seq_lens))
    for name in configs:
        if name not in CONFIGS:
            raise ZooError(f"bench kernels: unknown setting {name!r}; known: {', '.join(CONFIGS)}.")
    if not torch.cuda.is_available():
        raise ZooError("bench kernels: needs a CUDA GPU; torch finds none here.")
    report: dict[str, Any] = {"machine": machine(), "command": command, "ceilings": _ceilings()}
    report |= {part: [] for part in ("rows", "failed", "pair", "memory")}
    try:
        with torch.autograd.set_multithreading_enabled(False):
            for _ in _fill(report, configs, seq_lens, peers, graph, say):
                save(report)
    except GpuLost:
        report["failed"][-1]["error"] += " (and no kernel runs after it: the rest was not measured)"
        save(report)
    return report


def _fill(
    report: dict, configs: list[str], seq_lens: list[int], peers: bool, graph: bool, say: Callable[[str], None]
) -> Iterator[None]:
    """Add every measurement to the report; yields after each part that is worth saving."""
    for name in configs:
        for seq_len in seq_lens:
            say(f"{name} at {seq_len:,} tokens")
            if name == PAIR:
                report["pair"].append(pair_row(seq_len, graph))
            else:
                yield from _time_setting(report, name, seq_len, peers, graph, say)
            torch.cuda.empty_cache()
            yield
    if PAIR in configs:
        say("memory")
        report["memory"] = [memory_row(seq_len) for seq_len in MEMORY_LENGTHS]
        yield


def _time_setting(
    report: dict, setting: str, seq_len: int, peers: bool, graph: bool, say: Callable[[str], None]
) -> Iterator[None]:
    """Add the rows of a setting, ours and then those of each peer; yields after each of these.

    Of a peer that fails there is what it said instead: that is no reason to lose the others.
    Raises GpuLost if no kernel runs after it.
    """
    inputs = Inputs(SETTINGS[setting], seq_len, "cuda")
    report["rows"] += [_row(setting, seq_len, case, graph) for case in cases(inputs)]
    yield
    for peer, make in peer_cases(inputs) if peers else ():
        name, error = peer, None
        try:
            for case in make():
                name = case.operation
                report["rows"].append(_row(setting, seq_len, case, graph=False))  # not all peers can be captured
        except ImportError as missing:
            say(f"{peer} is not timed: {missing}")
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}".strip().splitlines()[0]
        if error is not None:
            say(f"{name} failed: {error}")
            report["failed"].append({"setting": setting, "seq_len": seq_len, "peer": name, "error": error})
            _see_that_kernels_run()
        yield


class GpuLost(Exception):
    """The GPU has failed: this process can start no further kernel."""


def _see_that_kernels_run() -> None:
    """After an access outside its memory a GPU runs nothing more for this process.  Raises GpuLost."""
    try:
        torch.cuda.empty_cache()
        torch.ones(1, device="cuda").item()
    except RuntimeError as error:
        raise GpuLost from error


def machine() -> dict[str, str]:
    """The GPU, and the versions that ran on it, as a report states them."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def _median_ms(function: Callable) -> float:
    from triton.testing import do_bench

    return do_bench(function, return_mode="median")


def _ceilings() -> dict[str, float]:
    """TFLOP/s of an 8,192-cubed bf16 product of random numbers, and TB/s, read plus written, of a copy of 2 GB."""
    generator = torch.Generator("cuda").manual_seed(1)
    a, b = (torch.randn(8192, 8192, generator=generator, device="cuda").bfloat16() for _ in range(2))
    product_ms = _median_ms(lambda: a @ b)
    source = torch.randn(2**30, generator=generator, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy_ms = _median_ms(lambda: target.copy_(source))
    return {"tflops": 2 * 8192**3 / product_ms / 1e9, "tb_s": 2 * 2 * 2**30 / copy_ms / 1e9}


def _graph_ms(call: Callable) -> float:
    """Median time of a replay of `call`, captured as a CUDA graph after three runs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        call()
    return _median_ms(graph.replay)


def _row(setting: str, seq_len: int, case: Case, graph: bool) -> dict:
    forward_ms = _median_ms(case.call)
    backward_ms = None
    if case.leaves:
        output = case.call()
        grad = torch.randn_like(output)
        backward_ms = _median_ms(lambda: torch.autograd.grad(output, case.leaves, grad, retain_graph=True))
        del output, grad
    graph_ms = None
    if graph:
        graph_ms = _graph_ms(_step(case.call, case.leaves) if case.leaves else case.call)
    return {
        "setting": setting,
        "seq_len": seq_len,
        "operation": case.operation,
        "peer_of": case.peer_of,
        "forward_ms": forward_ms,
        "backward_ms": backward_ms,
        "graph_ms": graph_ms,
        "flops": list(case.flops),
        "bytes": list(case.bytes),
    }


def _step(call: Callable, leaves: list[torch.Tensor]) -> Callable:
    """Forward and backward as one call."""
    grad = torch.randn_like(call())
    return lambda: torch.autograd.grad(call(), leaves, grad)


def pair_row(seq_len: int, graph: bool = False) -> dict:
    """ansa.local + ansa.global at 340M, attention only, forward and backward, against two full-attention layers.

    The full layers have the same heads (H=16, K=4, d=64) and run as `full_attention` does: cuDNN where it is there.
    """
    times = {}
    for name, setting in {"local": LOCAL, "global": GLOBAL, "full": FULL}.items():
        tensors = Tensors(setting, seq_len, "cuda")
        calls = {"local": tensors.window, "global": tensors.global_layer, "full": tensors.full}
        leaves = tensors.leaves + ([tensors.logits] if name == "global" else [])
        step = _step(calls[name], leaves)
        times[f"{name}_ms"] = _median_ms(step)
        if name != "full":
            times[f"{name}_device_ms"] = _device_ms(step)
        if graph:
            times[f"{name}_graph_ms"] = _graph_ms(step)
    row = {"seq_len": seq_len, **times, "pair_ms": times["local_ms"] + times["global_ms"]}
    row |= {"two_full_ms": 2 * times["full_ms"], "speed_up": 2 * times["full_ms"] / row["pair_ms"]}
    if graph:
        pair_ms, full_ms = times["local_graph_ms"] + times["global_graph_ms"], 2 * times["full_graph_ms"]
        row |= {"pair_graph_ms": pair_ms, "two_full_graph_ms": full_ms, "speed_up_graph": full_ms / pair_ms}
    return row


def _device_ms(step: Callable, runs: int = 5) -> float:
    """Time the GPU spends in kernels, without gaps between them: what a CUDA graph or a longer row approaches."""
    from torch.profiler import ProfilerActivity, profile

    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(runs):
            step()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e3 / runs


def memory_row(seq_len: int) -> dict:
    """Peak bytes a token that forward and backward of each ansa layer take above their inputs, gradients included."""
    row: dict[str, float] = {"seq_len": seq_len}
    for name, setting in {"local": LOCAL, "global": GLOBAL}.items():
        tensors = Tensors(setting, seq_len, "cuda")
        call, leaves = (tensors.window, tensors.leaves)
        if name == "global":
            call, leaves = tensors.global_layer, [*tensors.leaves, tensors.logits]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = call()
        torch.autograd.grad(output, leaves, torch.ones_like(output))
        row[f"{name}_bytes_per_token"] = (torch.cuda.max_memory_allocated() - before) / seq_len
        del tensors, output, call, leaves
    return row
