"""Tensors of theirs as ours, and back, by the rules of a family; every tensor is accounted for before any is read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from zoo.interop.errors import InteropError
from zoo.interop.family import Family, Rule
from zoo.interop.folder import DTYPES, SourceFolder, names

MOST_PROBLEMS = 20
Shapes = Mapping[str, Sequence[int]]


def check_tensors(folder: SourceFolder, family: Family, rules: Sequence[Rule], ours: Shapes) -> None:
    """Raise InteropError, naming each, for tensors that are missing, too many, or of another shape or dtype.

    ours: shapes of the model's tensors.
    """
    found = folder.tensors
    wrong = [problem for rule in rules for problem in _wrong(rule, found, ours)]
    used = {theirs.name for rule in rules for theirs in rule.theirs}
    left = [name for name in found if name not in used and not family.derived(name)]
    left = [name for name in left if not (name == "lm_head.weight" and "head.weight" not in ours)]
    if left:
        wrong.append(f"not part of the model that config.json describes: {names(left)}")
    if wrong:
        more = [f"and {len(wrong) - MOST_PROBLEMS} more"] if len(wrong) > MOST_PROBLEMS else []
        raise InteropError("\n".join(f"{folder.path}: {line}" for line in [*wrong[:MOST_PROBLEMS], *more]))


def _wrong(rule: Rule, found: Mapping[str, Any], ours: Shapes) -> Iterator[str]:
    missing = [theirs.name for theirs in rule.theirs if theirs.name not in found]
    if missing:
        yield f"{names(missing)} is missing"
        return
    rows = sum(_rows(ours[name]) for name in rule.ours)
    rest = list(ours[rule.ours[0]][1:])[-1:]
    for theirs in rule.theirs:
        place, wanted = found[theirs.name], [rows if theirs.rows is None else theirs.rows, *rest]
        wanted = wanted if theirs.shape is None else list(theirs.shape)
        if list(place.shape) != wanted:
            yield f"{theirs.name} is {list(place.shape)}; config.json makes it {wanted}"
        elif place.dtype not in DTYPES:
            yield f"{theirs.name} is {place.dtype}; it must be {', '.join(DTYPES)}"


def _rows(shape: Sequence[int]) -> int:
    """Rows of a tensor; those of all experts, on top of each other, where it has a matrix for each."""
    return shape[0] * shape[1] if len(shape) == 3 else shape[0]


def to_ours(folder: SourceFolder, rules: Sequence[Rule], ours: Shapes) -> dict[str, torch.Tensor]:
    """The model's tensors, float32.  Raises InteropError for damaged files, or a head that is not the tied one."""
    state: dict[str, torch.Tensor] = {}
    first: dict[str, str] = {}  # the tensor of theirs that each was made of
    for rule in rules:
        read = folder.read([theirs.name for theirs in rule.theirs])
        parts = [theirs.form.to_ours(read[theirs.name]) for theirs in rule.theirs]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        for name, part in zip(rule.ours, whole.split([_rows(ours[name]) for name in rule.ours]), strict=True):
            tensor = part.reshape(ours[name]).contiguous()
            if name in state and not torch.equal(tensor, state[name]):
                listed = names(theirs.name for theirs in rule.theirs)
                raise InteropError(f"{folder.path}: {listed} differs from {first[name]}, which it repeats")
            state[name] = tensor
            first.setdefault(name, rule.theirs[0].name)
    if "lm_head.weight" in folder.tensors and "head.weight" not in ours:
        (head,) = folder.read(["lm_head.weight"]).values()
        if not torch.equal(head, state["embedding.weight"]):
            why = "differs from the embedding, which config.json says it is (tie_word_embeddings)"
            raise InteropError(f"{folder.path}: lm_head.weight {why}")
    return state


def to_theirs(state: Mapping[str, torch.Tensor], rules: Sequence[Rule]) -> dict[str, torch.Tensor]:
    """Their tensors, of the model's."""
    found: dict[str, torch.Tensor] = {}
    written: set[str] = set()
    for rule in rules:
        parts = [state[name].flatten(0, 1) if state[name].dim() == 3 else state[name] for name in rule.ours]
        if not written.isdisjoint(rule.ours):  # safetensors takes no two names of one memory
            parts = [part.clone() for part in parts]
        written |= set(rule.ours)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        rows = [len(whole) if theirs.rows is None else theirs.rows for theirs in rule.theirs]
        for theirs, part in zip(rule.theirs, whole.split(rows), strict=True):
            found[theirs.name] = theirs.form.to_theirs(part).contiguous()
    return found
