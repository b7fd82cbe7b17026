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
    "P64": Setting(64, 4, 128, compression_block=64, compression_stride=64),  # the grid of flash-linear-attention
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
        self.q_rope = leaf(heads, R) if R else None
        self.k_rope = leaf(R) if R else None
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
        return kernels.compression_attention(self.q, k, v, q_rope=self.q_rope, k_rope=k_rope, **self._grid())

    def choice(self, pooled: list, lse: torch.Tensor) -> torch.Tensor:
        setting, (k, _, k_rope) = self.setting, pooled
        return kernels.choose_blocks(
            self.q,
            k,
            lse,
            q_rope=self.q_rope,
            k_rope=k_rope,
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


class Inputs:
    """What every operation of a setting reads at one length; pooled entries and branches as leaves of their own."""

    def __init__(self, setting: Setting, seq_len: int, device: str):
        self.setting, self.tensors = setting, Tensors(setting, seq_len, device)
        with torch.no_grad():
            pooled = self.tensors.pooled()
            compressed, self.lse = self.tensors.compression(pooled)
            self.chosen = self.tensors.choice(pooled, self.lse)
            selected = self.tensors.selection(self.chosen)
        self.pooled = [x if x is None else x.detach().requires_grad_() for x in pooled]
        self.branches = [x.detach().requires_grad_() for x in (compressed, selected)]
        block, stride = setting.compression_block, setting.compression_stride
        self.pairs = {
            "full": window_pairs(seq_len, seq_len),
            "window": window_pairs(seq_len, setting.window),
            "compression": compression_pairs(seq_len, block, stride),
            "choice": compression_pairs(seq_len, block, stride, setting.query_group),
            "selection": selection_pairs(seq_len, setting.selection_block, setting.n_selected),
        }

    @property
    def slots(self) -> list[torch.Tensor]:
        """Pooled keys, values and rotary keys."""
        return [x for x in self.pooled if x is not None]

    @property
    def queries(self) -> list[torch.Tensor]:
        return [x for x in (self.tensors.q, self.tensors.q_rope) if x is not None]

    def attention(self, operation: str, call: Callable, leaves: list, peer_of: str | None = None) -> Case:
        """A case of full, window, compression or selection attention, or, with `peer_of`, of its alternative."""
        setting = self.setting
        qk, v = setting.head_dim + setting.rope_dim, setting.head_dim
        products = 2.0 * setting.n_heads * self.pairs[peer_of or operation]
        read, q = _size(leaves), leaves[0]
        written = q.shape[1] * setting.n_heads * (v * q.element_size() + 4)  # o, and the log-sum-exp in float32
        flops = products * (qk + v), products * (3 * qk + 2 * v)
        return Case(operation, call, leaves, flops, (read + written, 2.0 * read + 2 * written), peer_of)

    def choice(self, operation: str, call: Callable, peer_of: str | None = None) -> Case:
        """A case of the choice of blocks, or, with `peer_of`, of its alternative."""
        setting = self.setting
        flops = 2.0 * setting.n_heads * self.pairs["choice"] * (setting.head_dim + setting.rope_dim)
        keys = [x for x in (self.pooled[0], self.pooled[2]) if x is not None]
        read = _size([*self.queries, *keys, self.lse]) / setting.query_group
        return Case(operation, call, [], (flops, 0), (read + self.chosen.numel() * 4, 0), peer_of)

    def moved(self, operation: str, call: Callable, read: list, written: list) -> Case:
        """A case that only moves: what it reads forward is written backward, and the reverse."""
        return Case(operation, call, read, (0, 0), (_size(read) + _size(written),) * 2)


def cases(inputs: Inputs) -> list[Case]:
    """Every operation of a setting at one length."""
    tensors, pooled, lse, chosen = inputs.tensors, inputs.pooled, inputs.lse, inputs.chosen
    raw = [x for x in (tensors.k, tensors.v, tensors.k_rope) if x is not None]

    def choice() -> torch.Tensor:
        with torch.no_grad():
            return tensors.choice(pooled, lse)

    def pooling() -> torch.Tensor:
        return torch.cat([x.flatten() for x in tensors.pooled() if x is not None])

    def gated() -> torch.Tensor:
        return tensors.gated(inputs.branches)

    size = _size(inputs.branches[:1])
    count = len(inputs.branches)
    return [
        inputs.attention("full", tensors.full, tensors.leaves),
        inputs.attention("window", tensors.window, tensors.leaves),
        inputs.moved("pooling", pooling, raw, inputs.slots),
        inputs.attention("compression", lambda: tensors.compression(pooled)[0], inputs.queries + inputs.slots),
        inputs.choice("choice", choice),
        inputs.attention("selection", lambda: tensors.selection(chosen), tensors.leaves),
        Case(
            "gated sum",
            gated,
            [*inputs.branches, tensors.logits],
            (0, 0),
            (size * (count + 1.0), size * (2 * count + 1.0)),
        ),
    ]


def _size(tensors: list[torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
