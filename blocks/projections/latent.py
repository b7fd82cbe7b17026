"""Latent projections: MLA (DeepSeek-V2, arXiv 2405.04434) and GLA, grouped latent attention (arXiv 2505.21487).

One module serves both: MLA is GLA with a single latent head (C = 1) and a key for every query head (K = H).
"""

from functools import partial

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from zoo.blocks.context import Context, Step
from zoo.blocks.parts import Entries, Keys, Linear, Queries, RMSNorm, linear, may_overwrite, query_readers, sinks
from zoo.blocks.projections.latent_config import ResolvedLatent
from zoo.kernels import Heads, Piece, split_heads


class PerHeadLinear(Linear):
    """A linear map of each latent head: x [..., J, R] -> [..., K, D]. No bias.

    weight: [K * D, R]; the rows of group g act on latent head g // (K / J).
    """

    def __init__(self, n_latent_heads: int, inputs: int, n_kv_heads: int, outputs: int):
        super().__init__(inputs, n_kv_heads * outputs, bias=False)
        self.n_latent_heads, self.n_kv_heads = n_latent_heads, n_kv_heads
        self._copied: tuple[torch.Tensor, int | None, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return per_head(x, self)[0]

    def transposed(self, y_BTHD: torch.Tensor) -> torch.Tensor:
        """W^T y for each query head, which uses the map of its group: [B, T, H, R], laid out by head."""
        x_HTR = torch.bmm(y_BTHD.flatten(0, 1).transpose(0, 1), self._of_heads(y_BTHD.shape[2]))
        return x_HTR.transpose(0, 1).unflatten(0, y_BTHD.shape[:2])

    def of_heads(self, x_BTHR: torch.Tensor) -> torch.Tensor:
        """W x where every query head has an x of its own: [B, T, H, D]."""
        B, T, H, _ = x_BTHR.shape
        weight_HDR = self._of_heads(H).to(x_BTHR.dtype)  # another under autocast, which leaves `out` alone
        y_THD = x_BTHR.new_empty(B * T, H, weight_HDR.shape[1])
        torch.bmm(x_BTHR.flatten(0, 1).transpose(0, 1), weight_HDR.mT, out=y_THD.transpose(0, 1))
        return y_THD.unflatten(0, (B, T))

    def _of_heads(self, n_heads: int) -> torch.Tensor:
        """The map of each query head, [H, D, R]; where heads share one, copies, which are kept for the next step.

        They are made anew when the weight has changed: its memory, which is held so that nothing else can take its
        place, or its version.
        """
        weight_KDR = self.weight.detach().unflatten(0, (self.n_kv_heads, -1))
        if n_heads == self.n_kv_heads:
            return weight_KDR
        version = None if self.weight.is_inference() else self.weight._version
        if self._copied is not None and version is not None:
            source, source_version, copies_HDR = self._copied
            if (source.data_ptr(), source_version, len(copies_HDR)) == (weight_KDR.data_ptr(), version, n_heads):
                return copies_HDR
        copies_HDR = weight_KDR.repeat_interleave(n_heads // self.n_kv_heads, 0)
        self._copied = weight_KDR, version, copies_HDR
        return copies_HDR

    @torch.no_grad()
    def renew(self) -> None:
        """Copy the map of heads that share one anew, where copies are kept: a write to `weight.data` leaves no trace.

        Into the same memory, which CUDA graphs may read.
        """
        if self._copied is None:
            return
        copies_HDR, weight_KDR = self._copied[2], self.weight.unflatten(0, (self.n_kv_heads, -1))
        fixed = copies_HDR.is_inference() and not torch.is_inference_mode_enabled()
        if fixed or (copies_HDR.dtype, copies_HDR.device) != (weight_KDR.dtype, weight_KDR.device):
            self._copied = None
        else:
            copies_HDR.unflatten(0, (self.n_kv_heads, -1)).copy_(weight_KDR[:, None])


def per_head(x: torch.Tensor, *maps: PerHeadLinear) -> list[torch.Tensor]:
    """Each map of x [..., J, R], which all maps read: [..., K, D]."""
    weights_JOR = [map.weight.unflatten(0, (map.n_latent_heads, -1)).to(x.dtype) for map in maps]
    if torch.compiler.is_compiling():  # which writes results where they belong itself
        found = [torch.einsum("...jr,jor->...jo", x, weight_JOR) for weight_JOR in weights_JOR]
    else:
        found = _PerHead.apply(x, *weights_JOR)
    return [y.flatten(-2).unflatten(-1, (map.n_kv_heads, -1)) for y, map in zip(found, maps, strict=True)]


class _PerHead(torch.autograd.Function):
    """y_j = W_j x_j for each weight [J, O, R]: x [..., J, R] -> y [..., J, O].

    Each product is written where it belongs; torch's einsum lays its result out by head, and a copy follows. In the
    backward pass the products are added up in one tensor. Weights that `train.freeze` keeps have no gradient.
    """

    @staticmethod
    def forward(ctx, x, *weights_JOR):
        ctx.save_for_backward(x, *weights_JOR)
        x_JNR = x.flatten(0, -3).transpose(0, 1)
        results = []
        for weight_JOR in weights_JOR:
            y = x.new_empty(*x.shape[:-1], weight_JOR.shape[1])
            torch.bmm(x_JNR, weight_JOR.mT, out=y.flatten(0, -3).transpose(0, 1))
            results.append(y)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx, *dys):
        x, *weights_JOR = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dx_JNR, x_JNR = (t.flatten(0, -3).transpose(0, 1) for t in (dx, x))
        dweights = []
        for i, (dy, weight_JOR) in enumerate(zip(dys, weights_JOR, strict=True)):
            dy_JNO = dy.flatten(0, -3).transpose(0, 1)
            torch.baddbmm(dx_JNR, dy_JNO, weight_JOR, beta=min(i, 1), out=dx_JNR)
            dweights.append(torch.bmm(dy_JNO.mT, x_JNR) if ctx.needs_input_grad[1 + i] else None)
        return dx, *dweights


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """x times a number; x itself for 1."""
    return x if factor == 1 else x * factor


class LatentProjection(nn.Module):
    """Latent heads c_j = RMSNorm_j((W_DKV x)_j) and one rotary key k_R = RoPE(W_KR x), which are all that is cached.

    Group g, reading latent head j: k_g = [W_UK,g c_j ; k_R], v_g = W_UV,g c_j. Query head: [W_Q x ; RoPE(W_QR x)],
    through a normed latent of width q_rank where given. With rope_dim 0 the rotary parts are left out, with
    `latent_norm: false` the norm of the latent heads. `latent_scale` and `q_latent_scale` multiply the normed latents.
    input: [[W_Q ; W_QR] by head ; W_DKV ; W_KR], or, where q_rank is given, [W_DQ ; W_DKV ; W_KR], and `query`, which
    reads the normed query latent, is [W_Q ; W_QR] by head. On a GPU queries are rotated in the product of `input`
    or `query` where no gradients are recorded, or where a pattern keeps them and they have no temperature; but not if
    that map has forward hooks, which see the product, or is not the zoo's own.
    """

    def __init__(self, config: ResolvedLatent, d_model: int, n_kv_sets: int = 1):
        super().__init__()
        assert n_kv_sets <= 1, "AttentionConfig refuses separate_kv with latents"
        self.config, self.n_kv_sets, self.n_patterns = config, n_kv_sets, 1
        self.patterns_keep_queries = False
        heads, rank = config.n_latent_heads, config.kv_rank // config.n_latent_heads
        queries = config.n_heads * config.qk_dim
        self.widths = [config.q_rank or queries, *[config.kv_rank, config.rope_dim] * n_kv_sets]
        self.input = linear(d_model, sum(self.widths))
        self.position = config.position.build()
        self.sinks = sinks(config.n_heads, config.sinks)
        self.query_norm = RMSNorm(config.q_rank, config.norm_eps, keeps_views=True) if config.q_rank else nn.Identity()
        self.query = linear(config.q_rank, queries) if config.q_rank else nn.Identity()
        if n_kv_sets == 0:
            return
        norm = partial(RMSNorm, rank, config.norm_eps, heads, keeps_views=True)
        self.latent_norm = norm() if config.latent_norm else nn.Identity()
        self.key_up = PerHeadLinear(heads, rank, config.n_kv_heads, config.head_dim)
        self.value_up = PerHeadLinear(heads, rank, config.n_kv_heads, config.v_head_dim)

    def forward(self, x_BTC: torch.Tensor, context: Context | Step) -> tuple[Queries, list[Entries]]:
        config, made, latents = self.config, self.input(x_BTC), self._latents()
        n = query_readers(self)
        n_pieces, of_queries = n * (2 if config.rope_dim else 1), self._queries(n)
        if config.q_rank:
            groups = (Heads(1, (Piece(config.q_rank),)), *latents)
            latent_BT1R, *entries = split_heads(made, groups, in_place=True)  # nothing is rotated: all pieces are views
            query = self.query(scaled(self.query_norm(latent_BT1R.squeeze(2)), config.q_latent_scale))
            table, in_place = self._table(query.dtype, context), self._in_place(self.query)
            parts = split_heads(query, (of_queries,), *table, in_place=in_place)
        else:
            table, in_place = self._table(made.dtype, context), self._in_place(self.input)
            found = split_heads(made, (of_queries, *latents), *table, in_place=in_place)
            parts, entries = found[:n_pieces], found[n_pieces:]
        each = tuple(zip(parts[:n], parts[n:] if config.rope_dim else [None] * n, strict=True))
        queries = Queries(*each[0], config.scale, self.sinks, config.score_softcap, each if n > 1 else ())
        queries = queries.tempered(config.position_temperature, context)
        if self.n_kv_sets == 0:
            return queries, []
        latent = {"latent": scaled(self.latent_norm(entries[0]), config.latent_scale)}
        return queries, [latent | {"rope_key": entries[1].squeeze(2)} if config.rope_dim else latent]

    def _in_place(self, module: nn.Module) -> bool:
        """Whether queries may stay in the product of `module`, which is then overwritten.

        Where gradients are recorded, only if a pattern keeps the queries: the product is all of them and little more.
        But where patterns keep copies (those of `torch.cat` in full attention), or a temperature makes others, the norm
        of the latents would keep the queries in addition.
        """
        kept = self.patterns_keep_queries and self.config.position_temperature is None
        return (kept or not torch.is_grad_enabled()) and may_overwrite(module)

    def _queries(self, n_readers: int) -> Heads:
        """What W_Q makes: the content of each head, and its rotary part."""
        config = self.config
        rope = config.rope_dim if self.position else 0
        rotary = (Piece(config.rope_dim, rope, readers=n_readers),) if config.rope_dim else ()
        return Heads(config.n_heads, (Piece(config.head_dim, readers=n_readers), *rotary))

    def _latents(self) -> tuple[Heads, ...]:
        """What W_DKV and W_KR make; the rotary key is rotated later, and by then copied."""
        config = self.config
        if self.n_kv_sets == 0:
            return ()
        latent = Heads(config.n_latent_heads, (Piece(config.kv_rank // config.n_latent_heads),))
        return (latent, Heads(1, (Piece(config.rope_dim, view=True),))) if config.rope_dim else (latent,)

    def _table(self, dtype: torch.dtype, context: Context | Step) -> tuple:
        """cos and sin of the queries' tokens, if they are rotated."""
        if not (self.position and self.config.rope_dim):
            return ()
        table = context.rope(self.config.rope_dim, self.position, dtype)
        return table.cos_BTR, table.sin_BTR

    def rotate(self, entries: Entries, context: Context | Step, blocks: tuple[int, int] | None = None) -> Entries:
        if "rope_key" not in entries:
            return entries
        return entries | {"rope_key": self._rotate(entries["rope_key"], context, blocks)}

    def _rotate(self, x: torch.Tensor, context: Context | Step, blocks: tuple[int, int] | None = None) -> torch.Tensor:
        """Copied where it is not rotated: a view would hold the whole product until the backward pass."""
        if not self.position:
            return x.contiguous()
        return context.rope(self.config.rope_dim, self.position, x.dtype, blocks, keys=True).rotate(x)

    def expand(self, entries: Entries) -> Keys:
        k_BTKD, v_BTKV = per_head(entries["latent"], self.key_up, self.value_up)
        return Keys(k_BTKD, v_BTKV, entries.get("rope_key"))

    def absorb(self, queries: Queries) -> Queries:
        return queries._replace(q=self.key_up.transposed(queries.q))

    def cached_keys(self, entries: Entries) -> Keys:
        return Keys(entries["latent"], entries["latent"], entries.get("rope_key"))

    def lift(self, o_BTHV: torch.Tensor) -> torch.Tensor:
        return self.value_up.of_heads(o_BTHV)

    def renew(self) -> None:
        for up in (self.key_up, self.value_up):
            up.renew()
