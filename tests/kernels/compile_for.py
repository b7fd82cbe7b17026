"""Compile every kernel for a GPU that is not there: compile_for.py CAPABILITY SHARED_BYTES DTYPE few|all.

Each call of an operation goes the usual way, to the tile that fits the shared memory; nothing is run, so what comes out
means nothing. `few`: each kernel at least once; `all`: at the sizes of more models, which takes twice as long.
Prints for each kernel how many tiles served and how many were too large. test_compiles.py runs it.
"""

import os
import sys
from collections import Counter
from importlib import import_module
from pkgutil import walk_packages

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

import zoo
from zoo import kernels

CAPABILITY, SHARED, DTYPE = int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3])
ALL = {"few": False, "all": True}[sys.argv[4]]
served, too_large = Counter(), Counter()


class Driver:
    """What Triton asks a driver for when it compiles."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(self, *arguments, grid, warmup, **constants):
    found = run(self, *arguments, grid=grid, warmup=True, **constants)
    if found.metadata.shared > SHARED:
        too_large[self.__name__] += 1
        raise OutOfResources(found.metadata.shared, SHARED, "shared memory")
    served[self.__name__] += 1
    return found


def noise(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=DTYPE).requires_grad_()


def layer(H: int, K: int, D: int, R: int, block: int, stride: int, selected: int, query_group: int) -> None:
    """Every operation of training, forward and backward."""
    T = 2048
    q, k, v = noise(1, T, H, D), noise(1, T, K, D), noise(1, T, K, D)
    q_rope, k_rope = (noise(1, T, H, R), noise(1, T, R)) if R else (None, None)
    near = kernels.window_attention(q, k, v, window=512, q_rope=q_rope, k_rope=k_rope)
    pooled_k, pooled_v = kernels.mean_pool([k, v], block=block, stride=stride)
    pooled_rope = kernels.mean_pool(k_rope, block=block, stride=stride) if R else None
    rotary = {"q_rope": q_rope, "k_rope": pooled_rope}
    far, lse = kernels.compression_attention(q, pooled_k, pooled_v, block=block, stride=stride, **rotary)
    grid = {"compression_block": block, "compression_stride": stride, "selection_block": selected}
    chosen = kernels.choose_blocks(
        q, pooled_k, lse.detach(), n_selected=16, query_group=query_group, **grid, **rotary
    ).zero_()  # memory that nobody wrote
    named = kernels.selection_attention(
        q, k, v, chosen, selection_block=selected, query_group=query_group, q_rope=q_rope, k_rope=k_rope
    )
    kernels.gated_sum([near, far, named], noise(1, T, H, 3)).sum().backward()


def capped(H: int, K: int, D: int, window: int) -> None:
    """Sinks and capped scores, over all keys and over a window, and in decoding."""
    q, k, sinks, T = noise(1, 2048, H, D), noise(1, 2048, K, D), torch.zeros(H, requires_grad=True), 2048
    for options in ({"sinks": sinks}, {"softcap": 50.0}, {"sinks": sinks, "softcap": 50.0}):
        near = kernels.window_attention(q, k, k, window=window, **options)
        (near + kernels.full_attention(q, k, k, **options)).sum().backward()
        at = torch.arange(T - 1, T)[None]
        kernels.cached_attention(q[:, -1:], k, k, at * 0, at + 1, **options)


def around_attention(C: int, F: int) -> None:
    """The residual stream in float32 and in DTYPE, what is added to it and what the products read in DTYPE, a
    feed-forward, and the cut of a projection."""
    wide, weight = torch.zeros(1, 64, C, requires_grad=True), torch.ones(C, requires_grad=True)
    for x, delta in ((wide, noise(1, 64, C)), (wide, None), (noise(1, 64, C), noise(1, 64, C))):
        total, normed = kernels.add_rms_norm(x, delta, weight, eps=1e-5, dtype=DTYPE)
        (total.sum() + normed.sum()).backward()
    kernels.swiglu_mlp(noise(64, C), noise(F, C), noise(F, C), noise(C, F)).sum().backward()
    heads = kernels.Heads(4, (kernels.Piece(64), kernels.Piece(48, 32))), kernels.Heads(1, (kernels.Piece(112),))
    table = torch.zeros(1, 64, 16)
    for in_place in (False, True):
        pieces = kernels.split_heads(noise(1, 64, 560), heads, table, table, in_place=in_place)
        sum(piece.sum() for piece in pieces).backward()


def decoding(name: str) -> None:
    """One new token, and a long piece, after a prompt."""
    model = zoo.build_model(zoo.load_recipe(f"recipes/tiny/{name}.yaml")).to(DTYPE)
    cache = model.new_cache(2, 256)
    for seq_len in (100, 1, 40):
        model.next_logits(torch.zeros(2, seq_len, dtype=torch.int64), cache)


driver.set_active(Driver())
run, JITFunction.run = JITFunction.run, compile_only
for module in walk_packages(kernels.__path__, "zoo.kernels."):  # all, before Triton is told to interpret
    if not module.name.endswith(".fla"):  # kernels of another package, which asks the GPU for its name at import
        import_module(module.name)
os.environ["TRITON_INTERPRET"] = "1"  # from here on, for dispatch: it takes tensors of a CPU
import_module("zoo.kernels.selection.op").MIN_TOKENS = 1  # small groups by key block, as in long rows
with kernels.use_implementation("triton"):
    layer(16, 4, 64, 32, 16, 16, 16, 4)  # ansa.global at 340M
    if ALL:
        layer(16, 2, 128, 0, 32, 16, 64, 1)  # as NSA publishes it
        capped(8, 4, 256, 4096)  # Gemma 2
        around_attention(8192, 64)
        decoding("nsa")
    q, k, chosen = noise(1, 2048, 16, 64), noise(1, 2048, 4, 64), torch.zeros(1, 2048, 4, 16, dtype=torch.int32)
    kernels.selection_attention(q, k, k, chosen, selection_block=64).sum().backward()  # NSA at 340M
    capped(64, 8, 64, 128)  # gpt-oss
    around_attention(1024, 2624)
    decoding("ansa")
for name in sorted(served):
    print(name, served[name], too_large[name])
