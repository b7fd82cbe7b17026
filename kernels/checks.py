"""Checks shared by the public functions: a caller's mistake raises a ValueError of one line."""

from functools import lru_cache

import torch

from zoo.kernels.documents import Documents, n_groups, n_slots


def sizes(op: str, **tensors: torch.Tensor | None) -> dict[str, int]:
    """Read the shape suffix of each name (`q_BTHD`) as the shape the tensor must have; a letter means one size.

    Returns the size of each letter; tensors that are None are skipped. Also checks that all floating tensors
    but those named lse have one dtype, and that all tensors are on one device.
    """
    described = tuple([(name, x.shape, x.dtype, x.device) for name, x in tensors.items() if x is not None])
    if torch.compiler.is_compiling():  # shapes may be symbols, which have no hash
        return _sizes(op, described)
    return _sizes_seen(op, described).copy()


def _sizes(op: str, described: tuple[tuple[str, torch.Size, torch.dtype, torch.device], ...]) -> dict[str, int]:
    known: dict[str, tuple[int, str]] = {}
    first_name, _, first_dtype, first_device = described[0]
    for name, shape, dtype, device in described:
        suffix = name.rsplit("_", 1)[1]
        if len(shape) != len(suffix):
            raise ValueError(f"{op}: {name} must have {len(suffix)} axes; found shape {list(shape)}.")
        for letter, size in zip(suffix, shape, strict=True):
            expected, source = known.setdefault(letter, (size, name))
            if size != expected:
                raise ValueError(
                    f"{op}: {name} must have {letter} = {expected}, as {source}; found shape {list(shape)}."
                )
        if device != first_device:
            raise ValueError(f"{op}: {name} is on {device}, but {first_name} on {first_device}.")
        if dtype.is_floating_point and dtype != first_dtype and not name.startswith("lse"):
            raise ValueError(f"{op}: {name} is {dtype}, but {first_name} is {first_dtype}.")
    if not first_dtype.is_floating_point:
        raise ValueError(f"{op}: {first_name} must be a floating-point tensor; found {first_dtype}.")
    for letter, (size, source) in known.items():
        if size < 1:
            raise ValueError(f"{op}: {source} must not be empty; found {letter} = {size}.")
    return {letter: size for letter, (size, _) in known.items()}


_sizes_seen = lru_cache(1024)(_sizes)  # remembered: a training step has the same shapes as the one before


def attention(op: str, tensors: dict, documents: Documents | None, scale: float | None) -> dict:
    """Check queries, keys and values, their rotary parts if any, and the documents. Returns sizes, scale, device."""
    rotary = [name for name in tensors if "_rope_" in name]
    absent = [name for name in rotary if tensors[name] is None]
    if len(absent) == 1:
        raise ValueError(f"{op}: {' and '.join(rotary)} come together; found no {absent[0].rsplit('_', 1)[0]}.")
    found = sizes(op, **tensors)
    if found["H"] % found["K"]:
        raise ValueError(
            f"{op}: query heads must be a multiple of key/value heads; found H={found['H']}, K={found['K']}."
        )
    documents_fit(op, documents, found["B"], found["T"], tensors["q_BTHD"].device)
    scale = (found["D"] + found.get("R", 0)) ** -0.5 if scale is None else float(scale)
    return {**found, "scale": scale, "device": tensors["q_BTHD"].device}


def score_options(op: str, q_BTHD: torch.Tensor, sinks: torch.Tensor | None, softcap: float | None) -> dict:
    """Check sinks and softcap. Returns sinks_H in the dtype that kernels read (float32 or float64), and softcap."""
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ValueError(f"{op}: softcap must be a positive number, or None; found {softcap}.")
    if sinks is None:
        return {"sinks": None, "softcap": softcap}
    n_heads, device = q_BTHD.shape[2], q_BTHD.device
    if list(sinks.shape) != [n_heads] or not sinks.is_floating_point():
        raise ValueError(f"{op}: sinks must be floating [H = {n_heads}]; found {sinks.dtype} {list(sinks.shape)}.")
    if sinks.device != device:
        raise ValueError(f"{op}: sinks is on {sinks.device}, but q_BTHD on {device}.")
    dtype = torch.float64 if q_BTHD.dtype == torch.float64 else torch.float32
    return {"sinks": sinks.to(dtype).contiguous(), "softcap": softcap}


def documents_fit(op: str, documents: Documents | None, batch: int, seq_len: int, device: torch.device) -> None:
    """Check that documents are for rows [batch, seq_len] on `device`.  Raises ValueError; so do all that follow."""
    if documents is None:
        return
    if tuple(documents.start_BT.shape) != (batch, seq_len):
        found = list(documents.start_BT.shape)
        raise ValueError(f"{op}: documents must be for shape [{batch}, {seq_len}]; found {found}.")
    if documents.start_BT.device != device:
        raise ValueError(
            f"{op}: documents are on {documents.start_BT.device}, the tensors on {device}; use .to(device)."
        )


def at_least(op: str, least: int, **numbers: int) -> None:
    """Check that numbers are whole, and `least` or more."""
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ValueError(f"{op}: {name} must be a whole number, at least {least}; found {number!r}.")


def compression_grid(op: str, block: int, stride: int) -> None:
    """Check the tokens of a block and from one block to the next."""
    at_least(op, 1, block=block, stride=stride)
    if block < stride:
        raise ValueError(
            f"{op}: block must be at least stride, or tokens between blocks are lost; found {block}, {stride}."
        )


def pooling(op: str, xs: list[torch.Tensor], block: int, stride: int, documents: Documents | None) -> None:
    """Check tensors [B, T, K, D] or [B, T, D] that are pooled together."""
    compression_grid(op, block, stride)
    if not xs:
        raise ValueError(f"{op}: x must be a tensor, or a sequence of at least one; found none.")
    for x in xs:
        if x.dim() not in (3, 4) or 0 in x.shape or not x.is_floating_point():
            raise ValueError(f"{op}: x must be floating [B, T, K, D] or [B, T, D]; found {x.dtype} {list(x.shape)}.")
        if x.shape[:2] != xs[0].shape[:2] or x.device != xs[0].device:
            found = [(list(x.shape), str(x.device)) for x in xs]
            raise ValueError(f"{op}: tensors pooled together must have one B, T and device; found {found}.")
    batch, length = xs[0].shape[:2]
    documents_fit(op, documents, batch, length, xs[0].device)


def slots_fit(op: str, n: int, seq_len: int, stride: int) -> None:
    """Check that there are as many pooled entries as `n_slots` says."""
    if n != n_slots(seq_len, stride):
        raise ValueError(
            f"{op}: T = {seq_len} tokens at stride {stride} have {n_slots(seq_len, stride)} slots; found N = {n}."
        )


def selection_grid(op: str, selection_block: int, query_group: int) -> None:
    """Check the tokens of a block, and the queries that choose together."""
    at_least(op, 1, selection_block=selection_block, query_group=query_group)
    if selection_block % query_group:
        raise ValueError(
            f"{op}: selection_block must be a multiple of query_group, so that a group lies in one block; "
            f"found {selection_block} and {query_group}."
        )


def chosen_fits(op: str, chosen_BGKS, found: dict, query_group: int, documents: Documents | None) -> None:
    """Check chosen blocks [B, G, K, S] against the sizes that `attention` found."""
    groups = n_groups(found["T"], query_group, documents)
    shape, expected = list(chosen_BGKS.shape), [found["B"], groups, found["K"]]
    if len(shape) != 4 or shape[:3] != expected or shape[3] < 1 or chosen_BGKS.dtype != torch.int32:
        raise ValueError(
            f"{op}: chosen_BGKS must be int32 [B={expected[0]}, G={groups}, K={expected[2]}, S], S at least 1"
            f"{' (G for these documents)' if documents else ''}; found {chosen_BGKS.dtype} {shape}."
        )
    if chosen_BGKS.device != found["device"]:
        raise ValueError(f"{op}: chosen_BGKS is on {chosen_BGKS.device}, but q_BTHD on {found['device']}.")


def choice_grid(op, compression_block, compression_stride, selection_block, n_selected, n_init, n_local) -> None:
    """Check the numbers of `choose_blocks`: strides divide the blocks, and n_selected is at least the forced blocks."""
    at_least(op, 0, n_init=n_init, n_local=n_local)
    at_least(op, max(1, n_init + n_local), n_selected=n_selected)
    for name, number in {"compression_block": compression_block, "selection_block": selection_block}.items():
        if number % compression_stride:
            raise ValueError(
                f"{op}: {name} must be a multiple of compression_stride {compression_stride}; found {number}."
            )


def integers(op: str, found: dict, **tensors: torch.Tensor) -> None:
    """Positions and bounds of the queries: integers [B, T], on the same device."""
    shape = [found["B"], found["T"]]
    for name, tensor in tensors.items():
        if list(tensor.shape) != shape or tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{op}: {name} must be integers {shape}; found {tensor.dtype} {list(tensor.shape)}.")
        if tensor.device != found["device"]:
            raise ValueError(f"{op}: {name} is on {tensor.device}, but q_BTHD on {found['device']}.")


def of_tokens(op: str, name: str, x: torch.Tensor, size: tuple[int, int], dtypes: tuple, device: torch.device) -> None:
    """Check a tensor [B, T], or one row [1, T] for all."""
    rows, seq_len = size
    if x.dim() != 2 or x.shape[0] not in (1, rows) or x.shape[1] != seq_len or x.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{op}: {name} must be {wanted} [{rows} or 1, {seq_len}]; found {x.dtype} {list(x.shape)}.")
    if x.device != device:
        raise ValueError(f"{op}: {name} is on {x.device}, but the cache on {device}.")


def of_rows(op: str, name: str, x: torch.Tensor, rows: int, device: torch.device) -> None:
    """Check one integer for each row."""
    if list(x.shape) != [rows] or x.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{op}: {name} must be integers [{rows}]; found {x.dtype} {list(x.shape)}.")
    if x.device != device:
        raise ValueError(f"{op}: {name} is on {x.device}, but the cache on {device}.")


def cached_choice(op: str, tensors: dict, previous_BKS: torch.Tensor, scale: float | None) -> dict:
    """Check queries, pooled keys and the latest choice. Returns sizes, scale, device."""
    if (tensors["q_rope_BTHR"] is None) != (tensors["k_rope_BNR"] is None):
        raise ValueError(f"{op}: q_rope and k_rope come together; found only one.")
    found = sizes(op, **tensors)
    shape, device = list(previous_BKS.shape), tensors["q_BTHD"].device
    if len(shape) != 3 or shape[0] != found["B"] or 0 in shape or previous_BKS.dtype != torch.int32:
        raise ValueError(f"{op}: previous_BKS must be int32 [{found['B']}, K, S]; found {previous_BKS.dtype} {shape}.")
    if previous_BKS.device != device:
        raise ValueError(f"{op}: previous_BKS is on {previous_BKS.device}, but q_BTHD on {device}.")
    _heads_share(op, found["H"], shape[1], found["J"])
    scale = (found["D"] + found.get("R", 0)) ** -0.5 if scale is None else float(scale)
    return {**found, "scale": scale, "device": device}


def cached_chosen(op: str, found: dict, chosen_BTKS: torch.Tensor) -> None:
    """Check chosen blocks [B, T, K, S] of new tokens against the sizes that `attention` found."""
    shape = list(chosen_BTKS.shape)
    if len(shape) != 4 or shape[:2] != [found["B"], found["T"]] or 0 in shape or chosen_BTKS.dtype != torch.int32:
        expected = f"int32 [{found['B']}, {found['T']}, K, S]"
        raise ValueError(f"{op}: chosen_BTKS must be {expected}; found {chosen_BTKS.dtype} {shape}.")
    if chosen_BTKS.device != found["device"]:
        raise ValueError(f"{op}: chosen_BTKS is on {chosen_BTKS.device}, but q_BTHD on {found['device']}.")
    _heads_share(op, found["H"], shape[2], found["K"])


def _heads_share(op: str, heads: int, groups: int, cache_heads: int) -> None:
    if heads % groups or groups % cache_heads:
        raise ValueError(
            f"{op}: query heads must be a multiple of the groups that choose, and those of the heads of the cache; "
            f"found H={heads}, K={groups}, J={cache_heads}."
        )
