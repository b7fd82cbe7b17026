"""What else there is for an operation, timed next to ours: torch's own attention, and other people's NSA.

That is flash-linear-attention (fla), SF-NSA (github.com/mdy666/Scalable-Flash-Native-Sparse-Attention, the package
flash_nsa), X-NSA (github.com/XunhaoLai/native-sparse-attention-triton) and the selection of cuDNN's frontend (the
package nvidia-cudnn-frontend, forward only). None is a dependency of the zoo. A peer that
cannot be imported, or is known to refuse a setting, has no row; one that fails while it is timed is named in its place.

They are given one sequence, and want a choice for every query: that of a query group is repeated for its queries.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import cast

import torch

from zoo.bench.cases import Case, Inputs


def peer_cases(inputs: Inputs) -> Iterator[tuple[str, Callable[[], list[Case]]]]:
    """Whose peers there are of the operations of `inputs`, and what makes their cases: one at a time, for it may fail.

    That raises ImportError where they are not installed. All of them want keys without a rotary part. SF-NSA is last:
    where it fails, nothing may run after it.
    """
    if not inputs.setting.rope_dim:
        for whose, make in {"fla": _fla, "X-NSA": _x_nsa, "torch": _torch, "cuDNN": _cudnn, "SF-NSA": _sf_nsa}.items():
            yield whose, partial(make, inputs)


def _torch(inputs: Inputs) -> list[Case]:
    """Flash attention for full, compiled FlexAttention for the window."""
    import torch._functorch.config
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tensors, window = inputs.tensors, inputs.setting.window
    q, k, v = (x.transpose(1, 2) for x in (tensors.q, tensors.k, tensors.v))
    length = tensors.seq_len
    mask = create_block_mask(
        lambda b, h, i, j: (j <= i) & (j > i - window), None, None, length, length, device=str(q.device)
    )
    torch._dynamo.reset()  # every length is compiled for itself, and the compiler would give up after eight
    torch._functorch.config.donated_buffer = False  # its backward runs many times, on what one forward kept
    compiled = torch.compile(flex_attention, dynamic=False)

    def flash() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def flex() -> torch.Tensor:
        return cast(torch.Tensor, compiled(q, k, v, block_mask=mask, enable_gqa=True))

    return [
        inputs.attention("full, torch flash", flash, tensors.leaves, "full"),
        inputs.attention("window, torch flex", flex, tensors.leaves, "window"),
    ]


def _fla(inputs: Inputs) -> list[Case]:
    """flash-linear-attention's selection of the blocks that ours chose; where it can, its compression and choice.

    It wants groups of 16, 32, 64 ... query heads; compression on the grid of selection, 64 tokens each.
    """
    setting, tensors = inputs.setting, inputs.tensors
    group = setting.n_heads // setting.n_kv_heads
    if group < 16 or group & (group - 1):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it could be quicker with
        import fla
        from fla.ops.nsa.compression import parallel_nsa_compression
        from fla.ops.nsa.parallel import parallel_nsa, parallel_nsa_topk

    name, length, block = f"fla {fla.__version__}", tensors.seq_len, setting.selection_block
    blocks = _of_every_query(inputs)[None].long().contiguous()

    def selection() -> torch.Tensor:
        return parallel_nsa(
            tensors.q, tensors.k, tensors.v, block_indices=blocks, block_counts=setting.n_selected, block_size=block
        )

    found = [inputs.attention(f"selection, {name}", selection, tensors.leaves, "selection")]
    if setting.compression_block == setting.compression_stride == block and setting.query_group == 1:
        (k, v, _), scale = inputs.pooled, setting.head_dim**-0.5

        def compression() -> torch.Tensor:
            return parallel_nsa_compression(tensors.q, k, v, length, block)[0]

        def choice() -> torch.Tensor:
            with torch.no_grad():
                return parallel_nsa_topk(tensors.q, k, length, inputs.lse, setting.n_selected, block, scale)

        leaves = inputs.queries + inputs.slots
        found += [
            inputs.attention(f"compression, {name}", compression, leaves, "compression"),
            inputs.choice(f"choice, {name}", choice, "choice"),
        ]
    return found


def _sf_nsa(inputs: Inputs) -> list[Case]:
    """SF-NSA's selection of the blocks that ours chose, its compression and its choice.

    In one of our runs its backward pass of blocks of 16 tokens read outside its tensors, and the process could start no
    further kernel. So it is given blocks of 64 and more.
    """
    setting, tensors = inputs.setting, inputs.tensors
    if setting.selection_block < 64:
        return []
    from flash_nsa.ops.compress_attn import compress_attn
    from flash_nsa.ops.select_attn import select_attn
    from flash_nsa.ops.topk import slc_topk_indices
    from flash_nsa.utils import NSAHelper

    # It keeps its setting and lengths to itself, and remembers them by the lengths alone.
    NSAHelper.set_hyperparameters(
        kernel_size=setting.compression_block, stride=setting.compression_stride, block_size=setting.selection_block,
        window_size=setting.window, top_n=setting.n_selected, num_init_blocks=1, num_local_blocks=2,
    )  # fmt: skip
    NSAHelper.x_cu_seqlens = None
    NSAHelper.init_cu_seqlens(_cu_seqlens(tensors.seq_len, tensors.q.device))
    n_blocks = -(-tensors.seq_len // setting.selection_block)
    chosen = _of_every_query(inputs).transpose(0, 1)
    chosen_KTS = torch.where(chosen < 0, n_blocks, chosen).contiguous()  # what its index takes for an empty place
    q, k, v = _one_sequence(tensors.q, tensors.k, tensors.v)
    pooled_k, pooled_v = slots = _whole_slots(inputs)

    @cache
    def lse() -> torch.Tensor:
        return compress_attn(q, pooled_k, pooled_v)[1]

    def choice() -> torch.Tensor:
        with torch.no_grad():
            options = {"fp32": False, "maybe_efficient_version": True, "scale_slc_p": True}
            return slc_topk_indices(q, pooled_k, lse(), **options)[0]

    found = [
        inputs.attention("selection, SF-NSA", lambda: select_attn(q, k, v, chosen_KTS), tensors.leaves, "selection"),
        inputs.attention(
            "compression, SF-NSA",
            lambda: compress_attn(q, pooled_k, pooled_v)[0],
            inputs.queries + slots,
            "compression",
        ),
    ]
    if setting.query_group == 1:  # it chooses for every query
        found.append(inputs.choice("choice, SF-NSA", choice, "choice"))
    return found


def _x_nsa(inputs: Inputs) -> list[Case]:
    """X-NSA's selection of the blocks that ours chose, and its compression; it takes blocks of 32 to 256 tokens."""
    setting, tensors = inputs.setting, inputs.tensors
    if setting.selection_block not in (32, 64, 128, 256):
        return []
    from native_sparse_attention.ops.triton.compressed_attention import compressed_attention
    from native_sparse_attention.ops.triton.topk_sparse_attention import topk_sparse_attention

    q, k, v = _one_sequence(tensors.q, tensors.k, tensors.v)
    pooled_k, pooled_v = slots = _whole_slots(inputs)
    chosen_KTS = _of_every_query(inputs).transpose(0, 1).contiguous()
    ends, pooled_ends = (_cu_seqlens(len(x), q.device) for x in (q, pooled_k))
    block, stride = setting.compression_block, setting.compression_stride

    def selection() -> torch.Tensor:
        return topk_sparse_attention(q, k, v, chosen_KTS, setting.selection_block, ends)

    def compression() -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 0 blocks are chosen: so it only attends
            grid = block, stride, setting.selection_block
            lengths = ends, pooled_ends, len(q), len(pooled_k)
            return compressed_attention(q, pooled_k, pooled_v, *grid, 0, *lengths)[0]

    return [
        inputs.attention("selection, X-NSA", selection, tensors.leaves, "selection"),
        inputs.attention("compression, X-NSA", compression, inputs.queries + slots, "compression"),
    ]


def _cudnn(inputs: Inputs) -> list[Case]:
    """The selection of cuDNN's frontend, of the blocks that ours chose: it has no backward pass.

    It takes groups of up to 16 query heads, and needs a GPU of compute capability 9.0.
    """
    setting, tensors = inputs.setting, inputs.tensors
    if setting.n_heads // setting.n_kv_heads > 16:
        return []
    import cudnn

    q, k, v = (x.detach() for x in _one_sequence(tensors.q, tensors.k, tensors.v))
    chosen_TKS = _of_every_query(inputs).contiguous()
    counts_TK = (chosen_TKS >= 0).sum(-1, dtype=torch.int32)
    ends, length, block = _cu_seqlens(len(q), q.device), tensors.seq_len, setting.selection_block

    def selection() -> torch.Tensor:
        return cudnn.NSA.selection_attention_wrapper(
            q, k, v, chosen_TKS, counts_TK, ends, ends, block_size=block, scale_softmax=setting.head_dim**-0.5,
            max_s_q=length, max_s_k=length, is_causal=True,
        )["o_tensor"][None]  # fmt: skip

    name = f"selection, forward alone, cuDNN {cudnn.__version__}"
    return [replace(inputs.attention(name, selection, tensors.leaves, "selection"), leaves=[])]


def _of_every_query(inputs: Inputs) -> torch.Tensor:
    """[T, K, S] int32: our choice, for each query of its group; -1 in empty places, which come last."""
    return inputs.chosen[0].repeat_interleave(inputs.setting.query_group, 0)[: inputs.tensors.seq_len]


def _one_sequence(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Without the axis of rows, of which there is one."""
    return [x.squeeze(0) for x in tensors]


def _whole_slots(inputs: Inputs) -> list[torch.Tensor]:
    """Pooled keys and values [n, K, D] of the n blocks that end within the row, as leaves; ours have a slot for every
    start."""
    setting = inputs.setting
    n = (inputs.tensors.seq_len - setting.compression_block) // setting.compression_stride + 1
    return [x[0, :n].detach().requires_grad_() for x in inputs.slots[:2]]


def _cu_seqlens(length: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([0, length], device=device, dtype=torch.int32)
