"""Writing to a cache by the kernels: one launch for two tensors."""

from __future__ import annotations

import torch

from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.layout import dense_rows
from zoo.kernels.slots import triton as kernels

CHANNELS = 512  # of a program of the kernels
_TILES = [dict(num_warps=4)]


def write_slots(kept, new, position_BT, wanted_BT) -> None:
    """`zoo.kernels.write_slots`."""
    (B, T), N = new[0].shape[:2], kept[0].shape[1]
    kept, new = _flat(kept), [dense_rows(x) for x in _flat(new)]
    position = position_BT.contiguous()
    wanted = position if wanted_BT is None else wanted_BT.contiguous()
    pairs = [x for pair in zip(kept, new, strict=True) for x in pair]
    constants = {**_channels(kept), "HAS_WANTED": wanted_BT is not None}
    _launch(kernels.write_kernel, B * T, pairs, (position, wanted, T, N), constants)


def pool_slots(kept, pooled, start_B, n_new_B, *, seq_len, block, stride) -> None:
    """`zoo.kernels.pool_slots`."""
    n_blocks, N, n_pooled = -(-seq_len // stride), kept[0].shape[1], pooled[0].shape[1]
    kept, pooled = _flat(kept), _flat(pooled)
    pairs = [x for pair in zip(kept, pooled, strict=True) for x in pair]
    constants = {**_channels(kept, 128), "BLOCK": block, "BLOCK_PADDED": next_power_of_2(block), "STRIDE": stride}
    constants["HAS_N_NEW"] = n_new_B is not None
    start = start_B.contiguous()
    n_new = start if n_new_B is None else n_new_B.contiguous()
    _launch(
        kernels.pool_kernel, len(start) * n_blocks, pairs, (start, n_new, seq_len, n_blocks, N, n_pooled), constants
    )


def _launch(kernel, programs: int, pairs: list[torch.Tensor], numbers: tuple, constants: dict) -> None:
    if len(pairs) == 2:
        pairs = pairs * 2  # pointers that are not followed: C1 is 0
    grid = (programs, cdiv(max(constants["C0"], constants["C1"]), constants["CP"]))
    strides = [stride for x in pairs for stride in x.stride()[:2]]
    launch(kernel, lambda tile: grid, (*pairs, *numbers, *strides), constants, _TILES, pairs[0].device)


def _channels(kept: list[torch.Tensor], most: int = CHANNELS) -> dict[str, int]:
    widths = [x.shape[2] for x in kept]
    widths += [0] * (2 - len(widths))
    return {"C0": widths[0], "C1": widths[1], "CP": min(most, next_power_of_2(max(widths)))}


def _flat(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """[B, N, channels]; of a cache it is a view."""
    return [x.flatten(2) if x.dim() > 3 else x for x in tensors]
