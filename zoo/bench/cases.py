"""What `zoo bench kernels` times: each operation of a setting on random bf16 tensors, with its arithmetic and bytes.

FLOPs are those of the (query, key) pairs that are visible, 2 a multiplication and addition: forward q k^T and p v;
backward the scores again, dp, dv, dk and dq. Bytes are the least that must move: each input read once, each output
written once. Keys gathered again and again, or products computed twice, count nothing: they are what is to be seen.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from zoo import kernels
from zoo.blocks.cost import compression_pairs, selection_pairs, window_pairs


@dataclass(frozen=True)
class Setting:
    """Heads and blocks of a set of operations. `rope_dim` R: keys come as a content part D and a rotary part R."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_dim: int = 0
    compression_block: int = 32
    compression_stride: int = 16
    selection_block: int = 64
    n_selected: int = 16
    query_group: int = 1
    window: int = 512


SETTINGS = {
    "P": Setting(64, 4, 128),
    "P4": Setting(64, 4, 128, query_group=4),
    "A64": Setting(16, 4, 64),
    "A64q4": Setting(16, 4, 64, query_group=4),
    "A": Setting(16, 4, 64, 0, 16, 16, 16, 32, 4),
}
GLOBAL = Setting(16, 4, 64, 32, 16, 16, 16, 64, 4)  # ansa.global at 340M
LOCAL = Setting(16, 16, 64, 32)  # ansa.local at 340M
FULL = Setting(16, 4, 64)  # the full-attention layer it is compared with


@dataclass(frozen=True)
class Case:
    """One operation to time. `call` returns what is differentiated, or a tensor without gradient.

    flops, bytes: (forward, backward); peer_of: the operation whose alternative this is.
    """

    operation: str
    call: Callable[[], torch.Tensor]
    leaves: list[torch.Tensor]
    flops: tuple[float, float]
    bytes: tuple[float, float]
    peer_of: str | None = None


class Tensors:
    """q, k, v, rotary parts and gate logits of one row of `seq_len` tokens, as leaves, seeded."""

    def __init__(self, setting: Setting, seq_len: int, device: str, dtype: torch.dtype = torch.bfloat16):
        generator = torch.Generator(device).manual_seed(17)

        def leaf(*shape: int) -> torch.Tensor:
            return torch.randn(1, seq_len, *shape, generator=generator, device=device, dtype=dtype).requires_grad_()

        self.setting, self.seq_len = setting, seq_len
        heads, kv_heads, D, R = setting.n_heads, setting.n_kv_heads, setting.head_dim, setting.rope_dim
        self.q, self.k, self.v = leaf(heads, D), leaf(kv_heads, D), leaf(kv_heads, D)
        self.q_rope, self.k_rope = (leaf(heads, R), leaf(R)) if R else (None, None)
        self.logits = leaf(heads, 2)

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [x for x in (self.q, self.k, self.v, self.q_rope, self.k_rope) if x is not None]

    def pooled(self) -> list[torch.Tensor | None]:
        """k, v and k_rope averaged over the compression grid."""
        pooled = kernels.mean_pool([x for x in (self.k, self.v, self.k_rope) if x is not None], **self._grid())
        return pooled if self.k_rope is not None else [*pooled, None]

    def full(self) -> torch.Tensor:
        return kernels.full_attention(self.q, self.k, self.v, q_rope=self.q_rope, k_rope=self.k_rope)

    def window(self) -> torch.Tensor:
        rotary = {"q_rope": self.q_rope, "k_rope": self.k_rope}
        return kernels.window_attention(self.q, self.k, self.v, window=self.setting.window, **rotary)

    def compression(self, pooled: list) -> tuple[torch.Tensor, torch.Tensor]:
        k, v, k_rope = pooled
        return kernels.compression_attention(self.q, k, v, q_rope=self.q_rope, k_rope_BNR=k_rope, **self._grid())

    def choice(self, pooled: list, lse: torch.Tensor) -> torch.Tensor:
        setting, (k, _, k_rope) = self.setting, pooled
        return kernels.choose_blocks(
            self.q,
            k,
            lse,
            q_rope=self.q_rope,
            k_rope_BNR=k_rope,
            compression_block=setting.compression_block,
            compression_stride=setting.compression_stride,
            n_selected=setting.n_selected,
            **self._shared(),
        )

    def selection(self, chosen: torch.Tensor) -> torch.Tensor:
        rotary = {"q_rope": self.q_rope, "k_rope": self.k_rope}
        return kernels.selection_attention(self.q, self.k, self.v, chosen, **rotary, **self._shared())

    def gated(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        return kernels.gated_sum(outputs, self.logits)

    def global_layer(self) -> torch.Tensor:
        """Pooling, compression, choice, selection and gated sum: an ansa.global layer without its projections."""
        pooled = self.pooled()
        compressed, lse = self.compression(pooled)
        return self.gated([compressed, self.selection(self.choice(pooled, lse))])

    def _grid(self) -> dict[str, int]:
        return {"block": self.setting.compression_block, "stride": self.setting.compression_stride}

    def _shared(self) -> dict[str, int]:
        return {"selection_block": self.setting.selection_block, "query_group": self.setting.query_group}


def cases(setting: Setting, seq_len: int, device: str, peers: bool = False) -> list[Case]:
    """Every operation of a setting at one length, and, where asked for, what else torch has for it."""
    tensors = Tensors(setting, seq_len, device)
    with torch.no_grad():
        detached = tensors.pooled()
        compressed, lse = tensors.compression(detached)
        chosen = tensors.choice(detached, lse)
        selected = tensors.selection(chosen)
    pooled = [x if x is None else x.detach().requires_grad_() for x in detached]
    outputs = [x.detach().requires_grad_() for x in (compressed, selected)]
    slots = [x for x in pooled if x is not None]
    queries = [x for x in (tensors.q, tensors.q_rope) if x is not None]
    raw = [x for x in (tensors.k, tensors.v, tensors.k_rope) if x is not None]
    pairs = _pairs(setting, seq_len)
    own, grid = tensors.leaves, (setting, pairs)
    found = [
        _attention("full", tensors.full, own, *grid),
        _attention("window", tensors.window, own, *grid),
        Case("pooling", lambda: _joined(tensors.pooled()), raw, (0, 0), _moved(raw, slots)),
        _attention("compression", lambda: tensors.compression(pooled)[0], queries + slots, *grid),
        _choice(lambda: tensors.choice(detached, lse), [*queries, *slots, lse], chosen, *grid),
        _attention("selection", lambda: tensors.selection(chosen), own, *grid),
        Case("gated sum", lambda: tensors.gated(outputs), [*outputs, tensors.logits], (0, 0), _gated_bytes(outputs)),
    ]
    return found + (_peers(tensors, *grid) if peers else [])


def _joined(tensors: list) -> torch.Tensor:
    return torch.cat([x.flatten() for x in tensors if x is not None])


def _pairs(setting: Setting, seq_len: int) -> dict[str, int]:
    block, stride = setting.compression_block, setting.compression_stride
    return {
        "full": window_pairs(seq_len, seq_len),
        "window": window_pairs(seq_len, setting.window),
        "compression": compression_pairs(seq_len, block, stride),
        "choice": compression_pairs(seq_len, block, stride, setting.query_group),
        "selection": selection_pairs(seq_len, setting.selection_block, setting.n_selected),
    }


def _attention(name: str, call: Callable, leaves: list, setting: Setting, pairs: dict, peer_of: str | None = None):
    qk, v = setting.head_dim + setting.rope_dim, setting.head_dim
    products = 2.0 * setting.n_heads * pairs[peer_of or name]
    read = sum(x.numel() * x.element_size() for x in leaves)
    q = leaves[0]
    written = q.shape[1] * setting.n_heads * (v * q.element_size() + 4)  # o, and the log-sum-exp in float32
    flops = products * (qk + v), products * (3 * qk + 2 * v)
    return Case(name, call, leaves, flops, (read + written, 2.0 * read + 2 * written), peer_of)


def _choice(call: Callable, leaves: list, chosen: torch.Tensor, setting: Setting, pairs: dict) -> Case:
    flops = 2.0 * setting.n_heads * pairs["choice"] * (setting.head_dim + setting.rope_dim)
    read = sum(x.numel() * x.element_size() for x in leaves if x is not None) / setting.query_group
    return Case("choice", call, [], (flops, 0), (read + chosen.numel() * 4, 0))


def _moved(inputs: list, outputs: list) -> tuple[float, float]:
    total = sum(x.numel() * x.element_size() for x in (*inputs, *outputs))
    return total, total


def _gated_bytes(outputs: list) -> tuple[float, float]:
    size = outputs[0].numel() * outputs[0].element_size()
    return size * (len(outputs) + 1.0), size * (2 * len(outputs) + 1.0)


def _peers(tensors: Tensors, setting: Setting, pairs: dict) -> list[Case]:
    """torch's flash attention for full, compiled FlexAttention for the window; both of equal widths only."""
    if setting.rope_dim:
        return []
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = (x.transpose(1, 2) for x in (tensors.q, tensors.k, tensors.v))
    length, window = tensors.seq_len, setting.window
    mask = create_block_mask(
        lambda b, h, i, j: (j <= i) & (j > i - window), None, None, length, length, device=str(q.device)
    )
    compiled = torch.compile(flex_attention)

    def flash() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def flex() -> torch.Tensor:
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    return [
        _attention("full, torch flash", flash, tensors.leaves, setting, pairs, "full"),
        _attention("window, torch flex", flex, tensors.leaves, setting, pairs, "window"),
    ]
