"""How many functions of kernels/ a call passes on its way to a launch: the host's time counts beside short kernels."""

import sys
from pathlib import Path

import pytest
import torch

from zoo import kernels

MOST = 6
ROOT = str(Path(kernels.__file__).parent.resolve())
T, H, K, D = 32, 4, 2, 16


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def attention() -> list[torch.Tensor]:
    return [noise(1, T, H, D), noise(1, T, K, D), noise(1, T, K, D)]


def gradients(output) -> None:
    outputs = output if isinstance(output, tuple | list) else [output]
    sum(x.sum() for x in outputs if x.requires_grad).backward()


def full() -> None:
    gradients(kernels.full_attention(*attention(), impl="triton"))


def window() -> None:
    gradients(kernels.window_attention(*attention(), window=5, impl="triton"))


def compression() -> None:
    pooled = kernels.mean_pool(attention()[1:], block=8, stride=8, impl="triton")
    gradients(kernels.compression_attention(noise(1, T, H, D), *pooled, block=8, stride=8, impl="triton"))


def choice() -> None:
    q, k, _ = attention()
    pooled, lse = k[:, ::8].detach(), torch.full((1, T, H), 4.0)
    grid = {"compression_block": 8, "compression_stride": 8, "selection_block": 16, "n_selected": 3}
    kernels.choose_blocks(q.detach(), pooled, lse, impl="triton", **grid)


def selection() -> None:
    chosen = torch.tensor([0, -1], dtype=torch.int32).expand(1, T, K, 2)
    gradients(kernels.selection_attention(*attention(), chosen, selection_block=32, impl="triton"))


def around() -> None:
    """What stands around attention: norms, rotation, the cut of a projection, gates, SwiGLU."""
    x, weight, table = noise(1, T, H, D), noise(D), torch.ones(1, T, D // 2)
    gradients(kernels.rotate(x, table, table, impl="triton"))
    gradients(kernels.rms_norm(x, weight, eps=1e-5, impl="triton"))
    gradients(kernels.add_rms_norm(noise(T, D), noise(T, D), weight, eps=1e-5, dtype=torch.float32, impl="triton"))
    heads = (kernels.Heads(2, (kernels.Piece(D, D // 2),)),)
    gradients(kernels.split_heads(noise(1, T, 2 * D), heads, table[..., : D // 4], table[..., : D // 4], impl="triton"))
    gradients(kernels.gated_sum([x, noise(1, T, H, D)], noise(1, T, H, 2), impl="triton"))
    gradients(kernels.swiglu_mlp(noise(T, D), noise(D, D), noise(D, D), noise(D, D), impl="triton"))


def cache() -> None:
    q, k, v = (x.detach() for x in attention())
    position = torch.arange(T - 2, T)[None]
    kernels.cached_attention(q[:, -2:], k, v, position * 0, position + 1, impl="triton")
    grid = {"compression_block": 8, "compression_stride": 8, "selection_block": 16}
    previous, lse = torch.zeros(1, K, 3, dtype=torch.int32), torch.full((1, 2, H), 4.0)
    chosen = kernels.cached_choose_blocks(q[:, -2:], k[:, ::8], lse, position, previous, impl="triton", **grid)
    kernels.cached_selection_attention(q[:, -2:], k, v, chosen, position, selection_block=16, impl="triton")
    kernels.write_slots([k, v], [k[:, :2] + 1, v[:, :2]], position, impl="triton")
    start, pooled = torch.zeros(1, dtype=torch.int64), [k[:, ::8].clone(), v[:, ::8].clone()]
    kernels.pool_slots([k, v], pooled, start, None, T, block=8, stride=8, impl="triton")


CALLS = {"full": full, "window": window, "compression": compression, "choice": choice, "selection": selection}
CALLS |= {"around attention": around, "cache": cache}


@pytest.mark.interp
@pytest.mark.parametrize("calls", [*CALLS.values(), "by key"], ids=[*CALLS, "selection by key"])
def test_a_call_passes_at_most_six_functions_before_each_launch(calls, monkeypatch):
    from zoo.kernels import launching
    from zoo.kernels.selection import op

    if calls == "by key":
        monkeypatch.setattr(op, "by_key", lambda *arguments: True)
        calls = selection
    paths: list[list[str]] = []

    def note(*arguments) -> None:
        """In place of running the kernel."""
        path, frame = [], sys._getframe(2)  # what called `launch`
        while frame is not None:
            if str(Path(frame.f_code.co_filename).resolve()).startswith(ROOT):
                path.append(frame.f_code.co_qualname)
            frame = frame.f_back
        paths.append(path[::-1])

    monkeypatch.setattr(launching, "_find", note)
    calls()
    assert paths
    assert max(map(len, paths)) <= MOST, max(paths, key=len)
