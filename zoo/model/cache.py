"""The cache of a model: one cache a layer, and how many tokens each row holds."""

from collections.abc import Callable
from copy import copy

import torch

from zoo.blocks.context import Step
from zoo.blocks.interface import LayerCache
from zoo.errors import ZooError


class ModelCache:
    """What a model keeps of up to max_len tokens of each of `batch` rows; made by `Decoder.new_cache`.

    layers: one cache for each layer, as `zoo.blocks.interface.LayerCache` says.
    length_B: int64, tokens that each row holds.
    """

    def __init__(self, layers: list[LayerCache], batch: int, max_len: int, device: torch.device):
        self.layers, self.max_len = layers, max_len
        self.length_B = torch.zeros(batch, dtype=torch.int64, device=device)
        # Bounds of length_B that the host knows without waiting for the device; caches of some rows share the list.
        self._held, self._rows = [0] * batch, range(batch)

    @property
    def batch(self) -> int:
        return len(self._rows)

    @property
    def longest(self) -> int:
        """At least as many tokens as the longest row holds; 0 if the cache is empty."""
        return max(self._held[row] for row in self._rows)

    @property
    def layer_nbytes(self) -> list[int]:
        """Bytes that the tensors of each layer occupy."""
        return [layer.nbytes for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors of all layers occupy."""
        return sum(self.layer_nbytes)

    def reset(self) -> None:
        """Forget all tokens; the memory is kept."""
        self.length_B.zero_()
        self._hold(lambda held: 0)

    def rows(self, lo: int, hi: int) -> "ModelCache":
        """Rows lo .. hi - 1 as a cache of its own in the same memory: to read long prompts a few rows at a time."""
        if not 0 <= lo < hi <= self.batch:
            raise ValueError(f"cache: rows must be lo < hi within 0..{self.batch}; found {lo}, {hi}")
        part = copy(self)
        part.layers, part.length_B = [layer.rows(lo, hi) for layer in self.layers], self.length_B[lo:hi]
        part._rows = self._rows[lo:hi]
        return part

    def reorder(self, source_B: torch.Tensor) -> None:
        """Row b goes on where row source_B[b] is, int64 [B], as beam search wants it.

        Raises ZooError if a layer is of a block whose cache cannot.
        """
        for index, layer in enumerate(self.layers):
            if not hasattr(layer, "reorder"):
                kind = type(layer).__name__
                raise ZooError(f"layer {index}: beam search needs the method reorder of its cache ({kind})")
            layer.reorder(source_B.to(self.length_B.device))
        self.length_B.copy_(self.length_B.index_select(0, source_B.to(self.length_B.device)))
        longest = self.longest
        self._hold(lambda held: longest)  # a bound: which rows are taken only the device knows

    def begin(self, tokens_BT: torch.Tensor, n_new_B: torch.Tensor | None) -> Step:
        """The step that appends these tokens.  Raises ValueError if they do not fit."""
        batch, seq_len = tokens_BT.shape
        if batch != self.batch:
            raise ValueError(f"cache: it is for {self.batch} rows; found {batch}")
        if seq_len < 1 or (n_new_B is not None and n_new_B.shape != (batch,)):
            found = None if n_new_B is None else list(n_new_B.shape)
            raise ValueError(
                f"cache: tokens must not be empty, and n_new_B [{batch}] or None; found T={seq_len}, {found}"
            )
        if self.longest + seq_len > self.max_len:
            self._ask_device()
        if self.longest + seq_len > self.max_len:
            held = f"{self.longest} held, {seq_len} to append"
            raise ValueError(f"cache: a row may hold {self.max_len} tokens; found {held}")
        return Step.after(self.length_B, seq_len, n_new_B, fresh=self.longest == 0)

    def end(self, step: Step) -> None:
        """Count the tokens of a step that every layer has taken."""
        self.length_B += step.seq_len if step.n_new_B is None else step.n_new_B
        self._hold(lambda held: held + step.seq_len)

    def _ask_device(self) -> None:
        """Make the bounds exact, which padding has made too large; the host waits for it."""
        for row, length in zip(self._rows, self.length_B.tolist(), strict=True):
            self._held[row] = length

    def _hold(self, change: Callable[[int], int]) -> None:
        for row in self._rows:
            self._held[row] = change(self._held[row])
