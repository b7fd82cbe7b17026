"""The pass that compiles the kernels of a step in several threads and launches none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from zoo.training.compile_only import _Zeros, can_compile_only, compile_only

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.skipif(not can_compile_only(), reason="this Triton cannot compile in threads")
def test_the_pass_compiles_what_a_step_launches(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).with_name("compile_only_pass.py")
    command = [sys.executable, script, ROOT / "recipes" / "tiny" / "ansa.yaml"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    names = [name for name, _ in found["by_pass"]]
    assert {"_selection_fwd_kernel", "_selection_bwd_dkdv_kernel", "_dkv_kernel", "_add_norm_bwd_kernel"} <= set(names)
    assert found["counted"] == len(names) >= 25
    assert sorted(found["launchers"]) == sorted(names)
    assert len({thread for _, thread in found["by_pass"]} - {"MainThread"}) == 3
    assert found["by_step"] == []
    assert len(list(tmp_path.rglob("*.cubin"))) == len(names)  # in Triton's cache, for the process that trains
    assert found["raised"] == "double measures its tiles, and nothing is launched here"
    assert found["tiles"] == 0


class Unwritten(torch.autograd.Function):
    """Returns memory that nobody wrote, in both passes."""

    @staticmethod
    def forward(ctx, x):
        return torch.empty_like(x) + x.new_empty(3)

    @staticmethod
    def backward(ctx, grad):
        return torch.empty(3) + torch.empty_strided((3,), (1,))


def test_unwritten_memory_holds_zeros_in_both_passes():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch fills it with NaN
    try:
        x = torch.ones(3, requires_grad=True)
        assert Unwritten.apply(x).isnan().all()
        with _Zeros(), torch.autograd.set_multithreading_enabled(False):
            y = Unwritten.apply(x)
            y.sum().backward()
            assert torch.empty(2, requires_grad=True).tolist() == [0, 0]
    finally:
        torch.use_deterministic_algorithms(before)
    assert y.tolist() == x.grad.tolist() == [0, 0, 0]


@pytest.mark.skipif(not can_compile_only(), reason="this Triton cannot compile in threads")
def test_what_a_step_raises_passes_through_and_leaves_triton_as_it_was():
    from triton.runtime import _async_compile
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    before = JITFunction.run, Autotuner._bench
    with pytest.raises(ZeroDivisionError):
        compile_only(lambda: 1 / 0, 2)
    assert (JITFunction.run, Autotuner._bench) == before
    assert _async_compile.active_mode.get() is None
    assert compile_only(lambda: None, 2) == 0
