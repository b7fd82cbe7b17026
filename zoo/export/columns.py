"""Columns of a batch, as transformers counts them, and the tokens among them, as the decoder reads them.

A batch of transformers may be padded anywhere; the decoder wants each row's tokens first and padding after them.
Positions are always counts of tokens, so that a padded row has the logits of the row alone.
Shape suffixes: B rows, T columns of a call, C columns that a cache has read, padding included.
"""

from dataclasses import dataclass

import torch


@dataclass
class Columns:
    """How the columns of one call are read.

    tokens_BT: each row's tokens in order, then padding.  places_BT: where in tokens_BT a column is; None: in its place.
    n_new_B: tokens of each row; None: all T.  starts_BT: bool, where documents of packed rows begin; None: one a row.
    real_BT: bool, which columns are tokens; None: all.
    """

    tokens_BT: torch.Tensor
    places_BT: torch.Tensor | None = None
    n_new_B: torch.Tensor | None = None
    starts_BT: torch.Tensor | None = None
    real_BT: torch.Tensor | None = None

    def in_order(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """x of tokens_BT as columns; that of padding means nothing."""
        if self.places_BT is None:
            return x_BTC
        return x_BTC.gather(1, self.places_BT[..., None].expand(-1, -1, x_BTC.shape[-1]))


@dataclass
class Read:
    """What a cache has read: `columns`, of which `real_BC` are tokens (None: all), n_B of each row (None: all).

    cached: whether there is a cache, whose rows are one document each.
    """

    columns: int = 0
    real_BC: torch.Tensor | None = None
    n_B: torch.Tensor | None = None
    cached: bool = False


def align(
    input_ids: torch.Tensor, mask_BT: torch.Tensor | None, position_ids: torch.Tensor | None, read: Read
) -> Columns:
    """Find the tokens of a call.

    mask_BT: attention_mask over the columns that were read and these, 1 for tokens.  position_ids: as the tokens are
    counted anyway, or restarting from 0 at each document of a packed row.
    Raises ValueError, naming the argument, for what the decoder cannot do.
    """
    real_BT = _real(input_ids, mask_BT, read)
    starts_BT = None
    if position_ids is not None:
        starts_BT = _check_positions(position_ids, input_ids, real_BT, read)
    elif real_BT is not None and not _one_run(real_BT):
        raise ValueError(
            "attention_mask: padding must be at the beginning or the end of a row, not within it; where it is, give "
            "position_ids that count the tokens, as attention_mask.cumsum(1) - 1"
        )
    if real_BT is None:
        return Columns(input_ids, starts_BT=starts_BT)
    order_BT = (~real_BT).byte().argsort(dim=1, stable=True)  # tokens first, each kind in its order
    places_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
    return Columns(input_ids.gather(1, order_BT), places_BT, real_BT.sum(1), None, real_BT)


def _real(input_ids: torch.Tensor, mask: torch.Tensor | None, read: Read) -> torch.Tensor | None:
    """Which of these columns are tokens, bool [B, T]; None if all are."""
    if mask is None:
        if read.real_BC is not None:
            raise ValueError("attention_mask: the cache has read padding, so give the mask of all columns, not None")
        return None
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        found = f"{mask.dim()} axes" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask: must be [rows, columns], 1 for tokens and 0 for padding; found {found}. Every query sees "
            "what its block says; for packed rows give position_ids that restart from 0 at each document"
        )
    expected = [input_ids.shape[0], read.columns + input_ids.shape[1]]
    if list(mask.shape) != expected:
        read_too = f" ({read.columns} columns in the cache and {input_ids.shape[1]} new)" if read.columns else ""
        raise ValueError(f"attention_mask: must be {expected}{read_too}; found {list(mask.shape)}")
    mask_BT = mask.bool()
    if mask.dtype != torch.bool and not torch.equal(mask_BT.to(mask.dtype), mask):
        raise ValueError("attention_mask: must be 1 for tokens and 0 for padding; found other numbers")
    if bool(mask_BT.all()) and read.real_BC is None:
        return None
    before_BC, real_BT = mask_BT[:, : read.columns], mask_BT[:, read.columns :]
    if not (torch.equal(before_BC, read.real_BC) if read.real_BC is not None else bool(before_BC.all())):
        raise ValueError("attention_mask: its first columns must be as they were when the cache read them")
    return None if bool(real_BT.all()) else real_BT


def _one_run(real_BT: torch.Tensor) -> bool:
    """Whether the tokens of each row lie side by side."""
    begins_BT = real_BT & ~torch.nn.functional.pad(real_BT, (1, 0))[:, :-1]
    return bool((begins_BT.sum(1) <= 1).all())


def _check_positions(
    position_ids: torch.Tensor, input_ids: torch.Tensor, real_BT: torch.Tensor | None, read: Read
) -> torch.Tensor | None:
    """Where documents begin, if positions restart; None if they count the tokens or the columns of a row."""
    shape = input_ids.shape
    if position_ids.dim() != 2 or position_ids.shape[1] != shape[1] or position_ids.shape[0] not in (1, shape[0]):
        raise ValueError(f"position_ids: must be [{shape[0]} or 1, {shape[1]}]; found {list(position_ids.shape)}")
    position_BT = position_ids.expand(shape)
    column_T = torch.arange(shape[1], device=input_ids.device)
    if real_BT is None:
        token_BT = column_T.expand(shape)
    else:
        token_BT = real_BT.cumsum(1) - 1
    before_B = read.columns if read.n_B is None else read.n_B[:, None]
    if _equal_at(position_BT, token_BT + before_B, real_BT):
        return None
    if (real_BT is None or _one_run(real_BT)) and _equal_at(position_BT, column_T + read.columns, real_BT):
        return None  # padding before a row's tokens moves all of them alike
    if real_BT is None and not read.cached:
        starts_BT = position_BT == 0
        goes_on_BT = position_BT[:, 1:] == position_BT[:, :-1] + 1
        if bool(starts_BT[:, 0].all()) and bool((goes_on_BT | starts_BT[:, 1:]).all()):
            return starts_BT
    raise ValueError(
        "position_ids: must count the tokens of each row from 0, those in the cache included, or, without padding and "
        "cache, restart from 0 at each document of a packed row; leave them out to have them counted"
    )


def _equal_at(x_BT: torch.Tensor, y_BT: torch.Tensor, where_BT: torch.Tensor | None) -> bool:
    same_BT = x_BT == y_BT
    return bool((same_BT if where_BT is None else same_BT | ~where_BT).all())
