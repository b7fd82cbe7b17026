"""What else there is for an operation, timed beside ours: torch's own attention, and flash-linear-attention's NSA.

None of it is a dependency of the zoo. A peer that is not installed, or is known to
refuse a setting, has no row; one that fails while it is timed ends the run.
"""

import warnings

import torch

from zoo.bench.cases import Case, Inputs


def peer_cases(inputs: Inputs) -> list[Case]:
    """Peers of the operations of `inputs`; all of them want keys without a rotary part."""
    if inputs.setting.rope_dim:
        return []
    return _fla(inputs) + _torch(inputs)


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
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    return [
        inputs.attention("full, torch flash", flash, tensors.leaves, "full"),
        inputs.attention("window, torch flex", flex, tensors.leaves, "window"),
    ]


def _fla(inputs: Inputs) -> list[Case]:
    """flash-linear-attention's selection of the blocks that ours chose; where it can, its compression and choice.

    It wants groups of 16, 32, 64 ... query heads; compression on the grid of selection, 64 tokens each; every query
    its own blocks, so that those of a query group are repeated for each of its queries.
    """
    setting, tensors = inputs.setting, inputs.tensors
    group = setting.n_heads // setting.n_kv_heads
    if group < 16 or group & (group - 1):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it could be quicker with
            import fla
            from fla.ops.nsa.compression import parallel_nsa_compression
            from fla.ops.nsa.parallel import parallel_nsa, parallel_nsa_topk
    except ImportError:  # not installed, or a version without them
        return []

    name, length, block = f"fla {fla.__version__}", tensors.seq_len, setting.selection_block
    blocks = inputs.chosen.long().repeat_interleave(setting.query_group, 1)[:, :length].contiguous()

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
