"""Documents packed into rows, and the block grids that start anew at the first token of each.

Every shape here follows from T and static bounds, so nothing waits for the device and nothing is compiled again.
`documents=None` means, everywhere, that each row is one document.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F


@dataclass(frozen=True, eq=False)
class Documents:
    """Where the documents of each row begin.

    start_BT: int32, the row index of the first token of the token's document; its position is t - start_BT[b, t].
    max_documents: an upper bound of the documents in one row. It sizes the list of query groups, so keep it tight
    where it is known, and the same from batch to batch.
    Raises ValueError if shapes or dtypes are wrong, and, on a CPU, if no documents begin so or they are more. The
    values of a tensor on a GPU are trusted, because checking them would wait for it.
    """

    start_BT: torch.Tensor
    max_documents: int

    def __post_init__(self):
        if self.start_BT.dim() != 2 or self.start_BT.dtype != torch.int32:
            found = f"{self.start_BT.dtype} {list(self.start_BT.shape)}"
            raise ValueError(f"Documents: start_BT must be int32 [B, T]; found {found}.")
        if self.max_documents < 1:
            raise ValueError(f"Documents: max_documents must be at least 1; found {self.max_documents}.")
        if type(self.start_BT) is torch.Tensor and self.start_BT.is_cpu and not torch.compiler.is_compiling():
            self._check_values()

    def _check_values(self) -> None:
        index_T = torch.arange(self.start_BT.shape[1], dtype=torch.int32)
        is_start_BT = self.start_BT == index_T
        if not torch.equal(self.start_BT, _latest(is_start_BT)):
            row = int((self.start_BT != _latest(is_start_BT)).any(1).nonzero()[0])
            raise ValueError(
                "Documents: start_BT must hold, for each token, the index of the first token of its document; row "
                f"{row} does not: {_short(self.start_BT[row].tolist())}."
            )
        most = int(is_start_BT.sum(1).max()) if is_start_BT.numel() else 0
        if most > self.max_documents:
            raise ValueError(f"Documents: max_documents is {self.max_documents}, but a row holds {most} documents.")

    @staticmethod
    def from_starts(is_start_BT: torch.Tensor, max_documents: int | None = None) -> Documents:
        """is_start_BT: bool, true where a document begins; the first token of a row always begins one.

        max_documents: counted if None and the tensor is on the CPU; elsewhere counting would wait for the device, and
        the bound becomes T, which makes query groups as many as tokens.
        """
        if is_start_BT.dim() != 2 or is_start_BT.dtype != torch.bool or is_start_BT.shape[1] == 0:
            found = f"{is_start_BT.dtype} {list(is_start_BT.shape)}"
            raise ValueError(f"Documents.from_starts: is_start_BT must be bool [B, T], T at least 1; found {found}.")
        seq_len = is_start_BT.shape[1]
        if is_start_BT.device.type == "cpu":
            inner = int(is_start_BT[:, 1:].sum(1).max()) if is_start_BT.shape[0] else 0
            if max_documents is not None and inner + 1 > max_documents:
                raise ValueError(
                    f"Documents.from_starts: max_documents is {max_documents}, but a row holds {inner + 1} documents."
                )
            max_documents = max_documents or inner + 1
        return Documents(_latest(is_start_BT), max_documents or seq_len)

    @staticmethod
    def from_cu_seqlens(cu_seqlens: torch.Tensor, batch: int, seq_len: int) -> Documents:
        """cu_seqlens: cumulative lengths, as FlashAttention's: 0, ..., B*T over the rows laid end to end.

        Its values are checked, which waits for the device if it lies on one; pass a CPU tensor and move the result.
        """
        ends = cu_seqlens.tolist()
        if ends[:1] != [0] or ends[-1] != batch * seq_len or any(a >= b for a, b in pairwise(ends)):
            bound = f"0 to B*T = {batch * seq_len}"
            raise ValueError(f"Documents.from_cu_seqlens: must rise strictly from {bound}; found {_short(ends)}.")
        missing = set(range(0, batch * seq_len, seq_len)) - set(ends)
        if missing:
            raise ValueError(
                f"Documents.from_cu_seqlens: a document may not run over the end of a row of {seq_len} tokens; "
                f"missing boundaries: {_short(sorted(missing))}."
            )
        is_start = torch.zeros(batch * seq_len, dtype=torch.bool)
        is_start[ends[:-1]] = True
        return Documents.from_starts(is_start.view(batch, seq_len)).to(cu_seqlens.device)

    def to(self, device: torch.device | str) -> Documents:
        return Documents(self.start_BT.to(device), self.max_documents)

    @property
    def position_BT(self) -> torch.Tensor:
        """int32, the index of each token in its document."""
        return torch.arange(self.start_BT.shape[1], device=self.start_BT.device, dtype=torch.int32) - self.start_BT

    def groups(self, query_group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs of up to `query_group` queries of one document, numbered in row order.

        Returns first_token_BG int32 (row index, -1 = unused group) and group_BT int32, with G = n_groups(T, ...).
        """
        batch, seq_len = self.start_BT.shape
        n = n_groups(seq_len, query_group, self)
        first_BT = self.position_BT % query_group == 0
        group_BT = first_BT.cumsum(1) - 1
        first_token_BG = torch.full((batch, n + 1), -1, device=self.start_BT.device, dtype=torch.int32)
        index_BT = torch.arange(seq_len, device=self.start_BT.device, dtype=torch.int32).expand(batch, -1)
        first_token_BG.scatter_(1, torch.where(first_BT, group_BT, n), index_BT)  # tokens inside a group go to column n
        return first_token_BG[:, :n], group_BT.int()

    def slots(self, block: int, stride: int) -> torch.Tensor:
        """The compression grid: slot_BN int32, the row index of the first token of the block in each slot, -1 = empty.

        Block j of a document that starts at row index a has slot a // stride + j. Its first token then lies in tokens
        [slot * stride, (slot + 1) * stride), and since block >= stride no other block of the row begins in there.
        """
        batch, seq_len = self.start_BT.shape
        n = n_slots(seq_len, stride)
        last_BT = F.pad(self.start_BT, (0, block), value=-1)[:, block - 1 : block - 1 + seq_len]
        whole_BT = (self.position_BT % stride == 0) & (last_BT == self.start_BT)
        whole_BNs = F.pad(whole_BT, (0, n * stride - seq_len)).view(batch, n, stride)
        token_Ns = torch.arange(n * stride, device=self.start_BT.device, dtype=torch.int32).view(n, stride)
        return torch.where(whole_BNs, token_Ns, -1).amax(2)


def n_slots(seq_len: int, stride: int) -> int:
    """N: places for the compression blocks of a row, filled or not."""
    return max(1, -(-seq_len // stride))


def n_groups(seq_len: int, query_group: int, documents: Documents | None = None) -> int:
    """G: places for the query groups of a row; each document may end in a short group."""
    whole = -(-seq_len // query_group)
    return whole if documents is None else min(seq_len, whole + documents.max_documents)


def starts(documents: Documents | None, batch: int, seq_len: int, device: torch.device) -> torch.Tensor:
    """start_BT, all zero where each row is one document."""
    if documents is not None:
        return documents.start_BT
    return torch.zeros(batch, seq_len, device=device, dtype=torch.int32)


def query_groups(
    documents: Documents | None, batch: int, seq_len: int, query_group: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """first_token_BG and group_BT as `Documents.groups`, also where each row is one document."""
    if documents is not None:
        return documents.groups(query_group)
    first_G = torch.arange(0, seq_len, query_group, device=device, dtype=torch.int32)
    group_T = torch.arange(seq_len, device=device, dtype=torch.int32) // query_group
    return first_G.expand(batch, -1), group_T.expand(batch, -1)


def _latest(is_start_BT: torch.Tensor) -> torch.Tensor:
    """int32 [B, T]: the index of the latest token of the row that begins a document; 0 before the first."""
    index_T = torch.arange(is_start_BT.shape[1], device=is_start_BT.device, dtype=torch.int32)
    return torch.where(is_start_BT, index_T, 0).cummax(1).values


def _short(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"[{', '.join(map(str, numbers[:4]))}, ..., {numbers[-1]}]"
