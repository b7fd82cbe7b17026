"""Rotary position embedding (Su 2021, arXiv 2104.09864): tables of cos and sin, and the rotation.

Half split: channel i of a head turns with channel i + d/2, as in transformers' Llama. A checkpoint that pairs channels
2i and 2i + 1 (interleaved) needs its query and key rows permuted, even ones first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from zoo.blocks.positions.rotary_config import LinearScaling, Llama3Scaling, Rotary, YarnScaling
from zoo.kernels import rotate

Scaling = LinearScaling | YarnScaling | Llama3Scaling | None


@dataclass(frozen=True, eq=False)
class RopeTable:
    """cos_BTR, sin_BTR: [B or 1, T, dim / 2], float32 (float64 in a float64 model)."""

    cos_BTR: torch.Tensor
    sin_BTR: torch.Tensor

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate x, [B, T, heads, dim] or [B, T, dim], in the table's precision; returns x's dtype."""
        return rotate(x, self.cos_BTR, self.sin_BTR)


class RotaryPositions:
    """The tables of a rotary embedding (`blocks.interface.Positions`)."""

    keys_differ = False

    def __init__(self, config: Rotary):
        self.theta, self.scaling, self.values = config.theta, config.scaling, config.values

    def table(self, positions_BT: torch.Tensor, dim: int, dtype: torch.dtype, keys: bool) -> RopeTable:
        """Queries and keys have the same."""
        return rope_table(positions_BT, dim, self.theta, self.scaling, dtype)


def rope_table(positions_BT: torch.Tensor, dim: int, theta: float, scaling: Scaling, dtype: torch.dtype) -> RopeTable:
    """The table for positions_BT (whole or not; [B or 1, T]) in dtype, which must be float32 or float64."""
    frequencies = inverse_frequencies(dim, theta, scaling, dtype, positions_BT.device)
    angles_BTR = positions_BT.to(dtype)[..., None] * frequencies
    factor = 1.0 if scaling is None else scaling.attention_factor_value
    return RopeTable(angles_BTR.cos() * factor, angles_BTR.sin() * factor)


def inverse_frequencies(
    dim: int, theta: float, scaling: Scaling, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> torch.Tensor:
    """Radians a token of each of the dim / 2 channel pairs, in the order of operations of transformers."""
    wavelengths = theta ** (torch.arange(0, dim, 2, device=device).to(dtype) / dim)
    return 1.0 / wavelengths if scaling is None else FREQUENCIES[scaling.rope_type](scaling, wavelengths, theta)


def linear_frequencies(scaling: LinearScaling, wavelengths: torch.Tensor, theta: float) -> torch.Tensor:
    """Frequencies of position interpolation.  wavelengths: [dim / 2], without scaling, in tokens / 2 pi."""
    return 1.0 / wavelengths / scaling.factor


def yarn_frequencies(scaling: YarnScaling, wavelengths: torch.Tensor, theta: float) -> torch.Tensor:
    """Frequencies of YaRN (arXiv 2309.00071, section 3.2).  wavelengths: as `linear_frequencies`."""
    kept = 1.0 - _yarn_ramp(scaling, 2 * len(wavelengths), theta, wavelengths.device).to(wavelengths.dtype)
    return 1.0 / (scaling.factor * wavelengths) * (1.0 - kept) + 1.0 / wavelengths * kept


def llama3_frequencies(scaling: Llama3Scaling, wavelengths: torch.Tensor, theta: float) -> torch.Tensor:
    """Frequencies of Llama 3.1: slow channels are interpolated, fast ones kept, those between blended.

    wavelengths: as `linear_frequencies`.
    """
    frequencies = 1.0 / wavelengths
    tokens = 2 * math.pi / frequencies  # of one turn
    turns = scaling.original_max_position_embeddings / tokens  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = (turns - low) / (high - low or 1.0)  # equal in Llama 4 Scout, where nothing lies between
    slow = frequencies / scaling.factor
    blended = (1 - kept) * slow + kept * frequencies
    longest, shortest = (scaling.original_max_position_embeddings / factor for factor in (low, high))
    return torch.where(tokens > longest, slow, torch.where(tokens < shortest, frequencies, blended))


def _yarn_ramp(scaling: YarnScaling, dim: int, theta: float, device: torch.device | None) -> torch.Tensor:
    """How far each channel pair is interpolated: 0 for those that turn fast, 1 for those that turn slowly.

    Made on the device: a copy from the host's memory cannot be part of a CUDA graph.
    """

    def channel(rotations: float) -> float:
        """The pair that turns so often within the original context."""
        wavelength = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001  # transformers' way round a division by zero
    return ((torch.arange(dim // 2, dtype=torch.float32, device=device) - low) / width).clamp(0, 1)


FREQUENCIES: dict[str, Callable[..., torch.Tensor]] = {
    "linear": linear_frequencies,
    "yarn": yarn_frequencies,
    "llama3": llama3_frequencies,
}  # by type
