"""Grouped-query attention as latent attention: keys and values through a small latent, by singular vectors.

A GQA layer makes, of its input x, a key k_g = R_t W_K,g x and a value v_g = W_V,g x for each group g, R_t the rotation.
A latent layer has one rotary key for all heads, and makes the rest of every key and every value from a latent:

1. Rotary part.  A rotation acts on pairs of channels, one frequency each, and does the same in every head. So for each
   frequency the pairs of all groups can be mixed by one orthogonal matrix without changing any score, and the first
   axis is turned to where the keys of all groups vary most (principal component over groups, real and imaginary
   parts alike). That component becomes the shared rotary key, and each query head carries its group's share of it. Only
   frequencies of the new rotary table are taken; the other pairs lose their rotation.
2. Content.  What is left of each key, without rotation, is stacked with the values of the groups that read the same
   latent: one map M of x. Its projection on its r leading left singular vectors, M ~ U (U^T M), gives the latent
   U^T M x and the maps U from the latent to keys and values. Singular vectors are those of M C^(1/2), C the second
   moment of x, which weights the error by where inputs lie. With r at least the rank of M nothing is lost.

The ideas are those of MHA2MLA (arXiv 2502.14837: part of the channels keeps its rotation, joint SVD of keys and values)
and TransMLA (arXiv 2502.07864: mixing heads frequency by frequency, so that one shared key carries the rotation).
Shapes: K groups of the old layer, D key channels, V value channels, C model width, R rotary channels, r latent width.
"""

from dataclasses import dataclass
from typing import Any

import torch

from zoo.blocks.positions.base import PositionConfig
from zoo.blocks.positions.none_config import NoPosition
from zoo.blocks.positions.rotary import inverse_frequencies
from zoo.blocks.positions.rotary_config import Rotary
from zoo.interop.errors import InteropError


@dataclass(frozen=True)
class OldMaps:
    """The maps of a GQA layer: q_HDC, k_KDC, v_KVC, and W_O as o_CHV; all float64."""

    q_HDC: torch.Tensor
    k_KDC: torch.Tensor
    v_KVC: torch.Tensor
    o_CHV: torch.Tensor


def to_latent(old: OldMaps, source: Any, target: Any, moment_CC: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parameters `projection.*` and `output.weight` of a latent layer.

    source, target: resolved projections (ResolvedGQA, ResolvedLatent).  moment_CC: the second moment of the inputs.
    Raises InteropError if the target has parts that the old layer cannot fill.
    """
    _check(source, target)
    root_CC = square_root(moment_CC)
    group_H = torch.arange(source.n_heads) // (source.n_heads // source.n_kv_heads)
    shared_RC, query_HRC, content_KDC = _rotary(old, source, target, group_H, root_CC)
    # Scores: old scale and rotary factor in the old queries, those of the new table divided out.
    factor, new_factor = (_length(p.position) for p in (source, target))
    ratio = source.scale / target.scale
    query_HDC = old.q_HDC * ratio
    query_HDC[:, : source.rotary_dim] *= factor**2
    query_HRC = query_HRC * (ratio * factor**2 / new_factor**2)

    basis_KDd = narrowing(content_KDC, root_CC, target.head_dim)
    basis_KVv = narrowing(old.v_KVC, root_CC, target.v_head_dim)
    content_KdC = basis_KDd.mT @ content_KDC
    value_KvC = basis_KVv.mT @ old.v_KVC
    query_HdC = basis_KDd[group_H].mT @ query_HDC
    output_CHv = torch.einsum("chv,hvw->chw", old.o_CHV, basis_KVv[group_H])

    old_of_new = _groups(source.n_kv_heads, target.n_kv_heads)
    down_rC, key_KdR, value_KvR = _latents(content_KdC, value_KvC, old_of_new, target, root_CC)
    queries = torch.cat([query_HdC, query_HRC], 1).flatten(0, 1)
    return {
        "projection.input.weight": torch.cat([queries, down_rC, shared_RC]),
        "projection.key_up.weight": key_KdR.flatten(0, 1),
        "projection.value_up.weight": value_KvR.flatten(0, 1),
        **_norm(down_rC, target, moment_CC),
        "output.weight": output_CHv.flatten(1),
    }


def _check(source: Any, target: Any) -> None:
    refusals = {
        "qk_norm: norms of queries and keys cannot be taken over by a latent": source.qk_norm,
        f"n_heads: must be {source.n_heads}, as before; found {target.n_heads}": source.n_heads != target.n_heads,
        "q_rank: a query latent has a norm that the old layer has not; leave q_rank out": target.q_rank,
        **{
            f"position: must be rotary or none, which a rotary key can take over; found {p.position.kind}": True
            for p in (source, target)
            if not isinstance(p.position, Rotary | NoPosition)
        },
    }
    for why, refused in refusals.items():
        if refused:
            raise InteropError(why)
    fewer, more = sorted((source.n_kv_heads, target.n_kv_heads))
    if more % fewer or target.n_kv_heads < source.n_kv_heads:
        found = f"found {target.n_kv_heads}"
        raise InteropError(
            f"n_kv_heads: must be a multiple of {source.n_kv_heads}, the groups of the old layer; {found}"
        )


def _length(position: PositionConfig) -> float:
    """What a rotary table multiplies queries and keys by."""
    scaling = position.scaling if isinstance(position, Rotary) else None
    return 1.0 if scaling is None else scaling.attention_factor_value


def square_root(moment_CC: torch.Tensor) -> torch.Tensor:
    """The symmetric root of a second moment.  Eigenvalues have a small floor, so that unseen directions still count."""
    values_C, vectors_CC = torch.linalg.eigh(moment_CC)
    floor = 1e-6 * float(values_C.mean())
    return vectors_CC * values_C.clamp(min=floor).sqrt() @ vectors_CC.T


def _rotary(
    old: OldMaps, source: Any, target: Any, group_H: torch.Tensor, root_CC: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(shared key R x C, each head's rotary query H x R x C, what is left of each group's key K x D x C)."""
    R, half = target.rope_dim, source.rotary_dim // 2
    shared_RC = old.k_KDC.new_zeros(R, old.k_KDC.shape[-1])
    query_HRC = old.q_HDC.new_zeros(source.n_heads, R, old.k_KDC.shape[-1])
    left_KDC = old.k_KDC.clone()
    for new, pair in matched(source, target).items():
        channels, places = torch.tensor([pair, pair + half]), torch.tensor([new, new + R // 2])
        keys_K2C = old.k_KDC[:, channels]
        seen_KX = (keys_K2C @ root_CC).flatten(1)
        axis_K = torch.linalg.eigh(seen_KX @ seen_KX.T)[1][:, -1]  # of the largest eigenvalue
        component_2C = torch.einsum("k,kpc->pc", axis_K, keys_K2C)
        shared_RC[places] = component_2C
        query_HRC[:, places] = axis_K[group_H][:, None, None] * old.q_HDC[:, channels]
        left_KDC[:, channels] -= axis_K[:, None, None] * component_2C
    return shared_RC, query_HRC, left_KDC


def matched(source: Any, target: Any) -> dict[int, int]:
    """For pairs of the new rotary table, the old pair of the nearest frequency; each old pair is used once.

    Pairs whose frequencies differ by more than a tenth are left out: their place in the new key stays empty.
    """
    if not (source.position.rotates and target.position.rotates and target.rope_dim and source.rotary_dim):
        return {}
    olds, news = (
        inverse_frequencies(width, p.position.theta, p.position.scaling, torch.float64).log()
        for p, width in ((source, source.rotary_dim), (target, target.rope_dim))
    )
    distance = (news[:, None] - olds[None]).abs()
    found: dict[int, int] = {}
    for flat in distance.flatten().argsort().tolist():
        new, old = divmod(flat, len(olds))
        if distance[new, old] > 0.1:
            break
        if new not in found and old not in found.values():
            found[new] = old
    return found


def narrowing(maps_KDC: torch.Tensor, root_CC: torch.Tensor, width: int) -> torch.Tensor:
    """[K, D, width]: an orthonormal basis of the directions in which each map's outputs vary most.

    The identity where width is D, and with further zeros where it is larger.
    """
    K, D, _ = maps_KDC.shape
    if width >= D:
        return torch.eye(D, width, dtype=maps_KDC.dtype).expand(K, D, width)
    return torch.linalg.svd(maps_KDC @ root_CC, full_matrices=False)[0][..., :width]


def _groups(n_old: int, n_new: int) -> torch.Tensor:
    """The old group that each new one comes from."""
    return torch.arange(n_new) // (n_new // n_old)


def _latents(
    content_KdC: torch.Tensor, value_KvC: torch.Tensor, old_of_new: torch.Tensor, target: Any, root_CC: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(W_DKV [r, C], W_UK [K, d, r/J], W_UV [K, v, r/J]); each latent head has the groups that read it."""
    n_latents, rank = target.n_latent_heads, target.kv_rank // target.n_latent_heads
    d, v = content_KdC.shape[1], value_KvC.shape[1]
    downs, keys, values = [], [], []
    for groups in old_of_new.chunk(n_latents):
        each = list(dict.fromkeys(groups.tolist()))  # copies of a group are one
        stacked_XC = torch.cat([content_KdC[each].flatten(0, 1), value_KvC[each].flatten(0, 1)])
        left_XR = torch.linalg.svd(stacked_XC @ root_CC, full_matrices=False)[0][:, :rank]
        left_XR = torch.nn.functional.pad(left_XR, (0, rank - left_XR.shape[1]))
        downs.append(left_XR.T @ stacked_XC)
        key_KdR = left_XR[: len(each) * d].unflatten(0, (-1, d))
        value_KvR = left_XR[len(each) * d :].unflatten(0, (-1, v))
        places = [each.index(group) for group in groups.tolist()]
        keys.append(key_KdR[places])
        values.append(value_KvR[places])
    return torch.cat(downs), torch.cat(keys), torch.cat(values)


def _norm(down_rC: torch.Tensor, target: Any, moment_CC: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scales of the latent's norm, where it has one: the size that each latent head has on average."""
    if not target.latent_norm:
        return {}
    heads_JRC = down_rC.unflatten(0, (target.n_latent_heads, -1))
    square_J = torch.einsum("jrc,cd,jrd->j", heads_JRC, moment_CC, heads_JRC) / heads_JRC.shape[1]
    sizes_J = square_J.sqrt() / target.latent_scale
    return {"projection.latent_norm.weight": sizes_J.repeat_interleave(heads_JRC.shape[1])}
