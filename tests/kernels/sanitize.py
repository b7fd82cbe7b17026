"""One pass over every kernel, for `compute-sanitizer --tool memcheck python tests/kernels/sanitize.py RECIPE...`.

With --around, only what stands around attention: the cut into heads, norms, rotation, SwiGLU; with --attention, only
attention; and the recipes. With --short no rows of 2,048 tokens: `--tool racecheck` takes minutes for each.

Each operation of training, forward and backward, at the widths of ansa and of NSA, with and without documents; and of
each recipe a step of training and decoding, with pieces of several lengths. Results are not looked at: tests do that.
Without a GPU it wants TRITON_INTERPRET=1, and patience.
"""

import os
import sys
from functools import partial

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # so that memory ends where a tensor does

import torch

import zoo
from zoo.kernels import (
    Documents,
    Heads,
    Piece,
    add_rms_norm,
    choose_blocks,
    compression_attention,
    full_attention,
    gated_sum,
    mean_pool,
    n_slots,
    rms_norm,
    rotate,
    selection_attention,
    split_heads,
    swiglu_mlp,
    use_implementation,
    window_attention,
)
from zoo.kernels.selection import op as selection_op

DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
SEQ_LEN = 333


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=DTYPE, requires_grad=True)


def layer(T, H, K, D, R, block, stride, selected, n, query_group, batch=1, documents=None) -> None:
    """Every operation of training: H query heads, K of keys, widths D + R, n blocks of `selected` tokens."""
    q, k, v, logits = noise(batch, T, H, D), noise(batch, T, K, D), noise(batch, T, K, D), noise(batch, T, H, 4)
    q_rope, k_rope = (noise(batch, T, H, R), noise(batch, T, R)) if R else (None, None)
    rotary = {"q_rope": q_rope, "k_rope": k_rope, "documents": documents}
    pool = partial(mean_pool, block=block, stride=stride, documents=documents)
    pooled_k, pooled_v = pool([k, v])
    pooled = {"q_rope": q_rope, "k_rope": pool(k_rope) if R else None, "documents": documents}
    far, lse = compression_attention(q, pooled_k, pooled_v, block=block, stride=stride, **pooled)
    grid = {"compression_block": block, "compression_stride": stride, "selection_block": selected}
    chosen = choose_blocks(q, pooled_k, lse.detach(), n_selected=n, query_group=query_group, **grid, **pooled)
    named = selection_attention(q, k, v, chosen, selection_block=selected, query_group=query_group, **rotary)
    near, whole = window_attention(q, k, v, window=64, **rotary), full_attention(q, k, v, **rotary)
    gated_sum([near, far, named, whole], logits).sum().backward()


def around(T, C, F) -> None:
    """Forward and backward of every operation around attention, with ragged widths; the stream float32 and narrow."""
    latent = (Heads(3, (Piece(20), Piece(12, 12))), Heads(2, (Piece(21),)), Heads(1, (Piece(12, view=True),)))
    grouped = (Heads(4, (Piece(24, 12),)), Heads(2, (Piece(24, view=True),)), Heads(2, (Piece(15),)))
    angle = torch.randn(1, T, 6, device=DEVICE)
    for groups in (latent, grouped):
        for in_place in (False, True):
            product = noise(2, T, sum(group.width for group in groups))
            pieces = split_heads(product, groups, angle.cos(), angle.sin(), in_place=in_place)
            sum(piece.float().sum() for piece in pieces).backward()
    x, weight = noise(2, T, C), torch.ones(C, device=DEVICE, requires_grad=True)
    for stream in (x.detach().float().requires_grad_(), x):
        sum(y.float().sum() for y in add_rms_norm(stream, noise(2, T, C), weight, eps=1e-6, dtype=DTYPE)).backward()
    heads = noise(2, T, 2, 12)
    rotate(rms_norm(heads, torch.ones(2, 12, device=DEVICE, requires_grad=True), eps=1e-6), angle.cos(), angle.sin())
    rms_norm(heads, torch.ones(2, 12, device=DEVICE, requires_grad=True), eps=1e-6).sum().backward()
    swiglu_mlp(x, noise(F, C), noise(F, C), noise(C, F)).sum().backward()


def long_rows(T, H, K, D, block, stride, selected) -> None:
    """The choice as rows of more than 64 chunks have it, in several runs, with few tokens."""
    from zoo.kernels.choice import op

    op.SHORT, op.MIN_RUN, op.WORKSPACE_BYTES = 2, 64, 1
    q, k, lse = noise(1, T, H, D), noise(1, n_slots(T, stride), K, D), torch.full((1, T, H), 4.0, device=DEVICE)
    grid = {"compression_block": block, "compression_stride": stride, "selection_block": selected}
    choose_blocks(q.detach(), k.detach(), lse, n_selected=4, query_group=4, **grid)


def model(path: str) -> None:
    """A step of training; then a prompt of two lengths, single tokens, and pieces of up to 70."""
    built = zoo.build_model(zoo.load_recipe(path), device=DEVICE).to(DTYPE)
    tokens = torch.randint(built.config.vocab_size, (2, 200), device=DEVICE)
    built.loss(tokens, tokens).backward()
    cache = built.new_cache(2, 420)
    with torch.no_grad():
        built.next_logits(tokens, cache, torch.tensor([200, 131], device=DEVICE))
        for n in (1, 1, 5, 16, 1, 40, 70):
            built.next_logits(tokens[:, :n], cache, torch.tensor([n, max(n - 1, 1)], device=DEVICE))


def main(arguments: list[str]) -> None:
    torch.manual_seed(17)
    if "--attention" not in arguments:
        with use_implementation("triton"):
            for sizes in ((SEQ_LEN, 200, 333), (64, 128, 352)):
                around(*sizes)
                print("ok, around attention", *sizes, flush=True)
    if "--around" not in arguments:
        attention(short="--short" in arguments or DEVICE == "cpu")
    for path in arguments:
        if not path.startswith("--"):
            model(path)
            print("ok", path, flush=True)


def attention(short: bool) -> None:
    """Every operation of attention, with and without documents.  short: no rows of 2,048 tokens."""
    starts = torch.zeros(2, SEQ_LEN, dtype=torch.bool)
    for row, tokens in enumerate(([5, 6, 40, 130, 300], [17, 128])):
        starts[row, tokens] = True
    documents = Documents.from_starts(starts.to(DEVICE), 8)
    selection_op.MIN_TOKENS = 1
    with use_implementation("triton"):
        for settings in (
            (16, 4, 64, 32, 16, 16, 16, 64, 4),  # ansa.global at 340M
            (16, 4, 64, 0, 16, 16, 16, 32, 4),  # the same without a rotary part
            (64, 4, 128, 0, 32, 16, 64, 16, 1),  # as NSA publishes it
            (64, 4, 128, 0, 32, 16, 64, 16, 4),
            (16, 4, 64, 0, 32, 16, 64, 16, 1),  # NSA at 340M: selection by key block
        ):
            for seq_len in (40,) if DEVICE == "cpu" else (SEQ_LEN,) if short else (SEQ_LEN, 2048):
                layer(seq_len, *settings)
                print("ok", seq_len, *settings, flush=True)
        layer(SEQ_LEN, 16, 4, 64, 32, 16, 16, 16, 16, 4, batch=2, documents=documents)
        layer(SEQ_LEN, 8, 2, 128, 0, 32, 16, 64, 8, 1, batch=2, documents=documents)
        layer(SEQ_LEN, 8, 4, 64, 32, 32, 16, 32, 8, 2, batch=2, documents=documents)
        print("ok, documents", flush=True)
        long_rows(4096 + 3, 16, 4, 64, 32, 16, 64)
        long_rows(2048 + 3, 16, 4, 64, 16, 16, 16)
        print("ok, long rows", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
