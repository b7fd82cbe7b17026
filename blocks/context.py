"""Where the tokens of a call stand: `Context` for whole rows, `Step` for tokens that are appended to a cache.

Legend of the shape suffixes: blocks/base.py.
"""

from collections.abc import Callable

import torch

from zoo.blocks.fields import PositionTemperature
from zoo.blocks.interface import Positions
from zoo.blocks.positions.rotary import RopeTable
from zoo.kernels import Documents, mean_pool


class _Positions:
    """What Context and Step share: positions, and the rotary tables made of them."""

    positions_BT: torch.Tensor
    documents: Documents | None
    _tables: dict
    _shared: dict[int, list]

    def share(self, group: int, sources: list) -> None:
        """Let later layers read the keys and values of a layer (`parts.Source`).  group: the index of that layer.

        By index, not the latest: activation checkpointing computes layers again from the last to the first.
        """
        self._shared[group] = sources

    def shared(self, group: int) -> list:
        """What layer `group` has shared."""
        if group not in self._shared:
            raise ValueError(f"attention: reads the keys and values of layer {group}, which has not run before it")
        return self._shared[group]

    def rope(
        self,
        dim: int,
        positions: Positions,
        dtype: torch.dtype,
        blocks: tuple[int, int] | None = None,
        keys: bool = False,
    ) -> RopeTable:
        """The table of every token, or of every slot of the compression grid `blocks` = (block, stride).

        A block stands at the mean position of its tokens, where the mean of equal keys, rotated, points as well.
        Tables are made at first use and kept for the layers that follow.
        """
        dtype = dtype if dtype == torch.float64 else torch.float32
        keys = keys and positions.keys_differ
        key = (dim, positions.values, dtype, blocks, keys)
        if key not in self._tables:
            with torch.no_grad(), torch.autocast(self.positions_BT.device.type, enabled=False):
                positions_BT = self.positions_BT.to(dtype)
                if blocks:
                    grid = {"block": blocks[0], "stride": blocks[1], "documents": self.documents}
                    positions_BT = mean_pool(positions_BT[..., None], **grid)[..., 0]
                self._tables[key] = positions.table(positions_BT, dim, dtype, keys)
        return self._tables[key]

    def query_factor(self, temperature: PositionTemperature, dtype: torch.dtype) -> torch.Tensor:
        """What the queries of each token are multiplied by, [B or 1, T, 1, 1], float32 or float64."""
        dtype = dtype if dtype == torch.float64 else torch.float32
        key = (*temperature.values, dtype)
        if key not in self._tables:
            times_BT = (self.positions_BT + 1) // temperature.every
            self._tables[key] = (times_BT.to(dtype).log1p() * temperature.scale + 1)[..., None, None]
        return self._tables[key]


class Context(_Positions):
    """Where the tokens of a batch stand, made once for a forward pass and shared by all layers.

    positions_BT: index of each token in its document, [B or 1, T].  documents: None if each row is one document.
    losses: what layers have added to the training loss.

    Not a dataclass: FSDP2 passes each layer copies of dataclass arguments, and the layers share this object.
    """

    def __init__(self, positions_BT: torch.Tensor, documents: Documents | None = None):
        self.positions_BT, self.documents = positions_BT, documents
        self.losses: list[torch.Tensor] = []
        self._tables: dict = {}
        self._shared = {}

    def for_another_model(self) -> "Context":
        """The same tokens, with nothing that layers have left."""
        return Context(self.positions_BT, self.documents)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add a scalar, such as one that balances experts, to the training loss. Validation ignores it."""
        self.losses.append(loss)

    @classmethod
    def for_tokens(
        cls, batch: int, seq_len: int, device: torch.device | str = "cpu", documents: Documents | None = None
    ) -> "Context":
        """The context of rows of seq_len tokens, each one document unless `documents` says otherwise."""
        if documents is None:
            return cls(torch.arange(seq_len, device=device)[None])
        if tuple(documents.start_BT.shape) != (batch, seq_len):
            found = list(documents.start_BT.shape)
            raise ValueError(f"Context: documents must be for shape [{batch}, {seq_len}]; found {found}")
        return cls(documents.position_BT, documents)


class Step(_Positions):
    """Where tokens stand that are appended to a cache: T a row, of which the first n_new_B are real, or all.

    positions_BT: [B, T], or [1, T] if fresh.  start_B: tokens that each row held before, int64.
    n_new_B: real tokens of each row, int64; None if all are.  fresh: no row held any, so the new tokens are all.
    Each row is one document.
    """

    documents = None  # each row is one

    def __init__(
        self,
        positions_BT: torch.Tensor,
        start_B: torch.Tensor,
        n_new_B: torch.Tensor | None = None,
        fresh: bool = False,
    ):
        self.positions_BT, self.start_B, self.n_new_B, self.fresh = positions_BT, start_B, n_new_B, fresh
        self._tables: dict = {}
        self._made: dict = {}
        self._shared = {}

    def add_loss(self, loss: torch.Tensor) -> None:
        """Nothing: tokens that are appended to a cache are not trained on."""

    @classmethod
    def after(cls, start_B: torch.Tensor, seq_len: int, n_new_B: torch.Tensor | None, fresh: bool) -> "Step":
        """The step that appends seq_len tokens to rows of start_B tokens."""
        token_T = torch.arange(seq_len, device=start_B.device)
        positions_BT = token_T[None] if fresh else start_B[:, None] + token_T
        return cls(positions_BT, start_B, n_new_B, fresh)

    @property
    def seq_len(self) -> int:
        return self.positions_BT.shape[1]

    @property
    def new_BT(self) -> torch.Tensor | None:
        """Which tokens are real: bool [B, T], or None if all are."""
        n_new_B = self.n_new_B
        if n_new_B is None:
            return None
        token_T = torch.arange(self.seq_len, device=self.start_B.device)
        return self.once("new", lambda: token_T < n_new_B[:, None])

    def once(self, name: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """make(), which depends only on the step and on what is in the name; layers that ask again get the same."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def zeros_BT(self) -> torch.Tensor:
        return self.once("zeros", lambda: torch.zeros_like(self.positions_BT))
