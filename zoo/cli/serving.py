"""`zoo show --kernels`: which implementation serves each layer on this machine, and why."""

from contextlib import contextmanager, nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import zoo.kernels.attend as attend
from zoo import blocks
from zoo.blocks.base import Context
from zoo.kernels import Documents, use_implementation
from zoo.kernels.dispatch import Choice, plan
from zoo.model.layer import make_feed_forward
from zoo.recipe import ModelConfig, Recipe


def kernels_of(recipe: Recipe) -> list[dict]:
    """One entry for each distinct layer: `layers` (numbers), `block`, and `operations`: (name, implementation, why).

    Operations are those of attention, then of the feed-forward, which `block` names where layers have different ones.

    For one row of max_seq_len tokens, packed documents if the recipe masks them; bf16 on a GPU, float32 elsewhere.
    """
    wanted = recipe.train.kernels
    found: dict[tuple, dict] = {}
    with nullcontext() if wanted == "auto" else use_implementation(wanted, "train.kernels"):
        for layer in recipe.model.expanded():
            key = (layer.config, layer.part, layer.feed_forward)
            if key not in found:
                calls = _calls(recipe.model, layer)
                operations = list(dict.fromkeys((op, choice.impl, choice.why) for op, choice in calls))
                block = f"{layer.block}, {layer.feed_forward.describe()}" if recipe.model.ffns else layer.block
                found[key] = {"layers": [], "block": block, "operations": operations}
            found[key]["layers"].append(layer.index)
    return list(found.values())


def _calls(model: ModelConfig, layer) -> list[tuple[str, Choice]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    with FakeTensorMode(), torch.device(device), _one_chunk(), torch.no_grad(), bf16:
        module = blocks.build(layer.config, model.d_model, part=layer.part)
        feed_forward = make_feed_forward(layer.feed_forward, model.d_model)
        x_BTC = torch.empty(1, model.max_seq_len, model.d_model)
        documents = None
        if model.document_mask:
            documents = Documents(torch.zeros(1, model.max_seq_len, dtype=torch.int32), max_documents=8)
        context = Context.for_tokens(1, model.max_seq_len, device, documents)
        return plan(lambda: feed_forward(module(x_BTC, context), context))


@contextmanager
def _one_chunk():
    """Tensors without data need no chunks, and thousands of them would take seconds."""
    before = attend.CHUNK_ELEMENTS
    attend.CHUNK_ELEMENTS = 2**62
    try:
        yield
    finally:
        attend.CHUNK_ELEMENTS = before


def as_text(recipe: Recipe) -> str:
    """The entries of `kernels_of` as lines."""
    model = recipe.model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = f"{gpu}, bfloat16" if gpu else "no CUDA GPU here, so the CPU, float32"
    packed = ", packed documents" if model.document_mask else ""
    lines = [f"{recipe.name}: one row of {model.max_seq_len:,} tokens{packed}; {machine}", ""]
    for entry in kernels_of(recipe):
        lines.append(f"{entry['block']}  (layers {_ranges(entry['layers'])})")
        lines += [f"  {op:<26} {impl:<10} {why}" for op, impl, why in entry["operations"]]
    return "\n".join(lines) + "\n"


def _ranges(numbers: list[int]) -> str:
    """The first few of many layers."""
    return ", ".join(map(str, numbers[:6])) + (f", ... {len(numbers)} in all" if len(numbers) > 6 else "")
