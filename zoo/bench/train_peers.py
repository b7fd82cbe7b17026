"""transformers' Llama with liger-kernel, trained in a plain loop, as a measure of the zoo's own step."""

import contextlib

import torch

from zoo.bench.train_clock import Clock
from zoo.bench.train_engine import RandomRows
from zoo.counting.model_cost import model_cost
from zoo.errors import ZooError
from zoo.training.device import peak_flops
from zoo.training.optimizer import make_optimizer


def measure_peer(recipe, compiled: bool, steps: int, started: float) -> dict:
    """Forward, backward, clipping and AdamW on the recipe's batch.

    compiled: the layers under torch.compile; torch 2.11 cannot compile liger-kernel's loss.  The micro-batch is the
    recipe's, halved until it fits.
    Raises ZooError for a recipe whose first layer has no heads, no d_ff, or a mixture of experts.
    """
    seq_len, on_gpu = recipe.seq_len, torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    model = _llama(recipe, seq_len, on_gpu).to(device)
    optimizer = make_optimizer(model, recipe.train.optimizer)
    clock = Clock(steps, started)
    rows = recipe.train.rows(seq_len)
    micro_batch = rows if recipe.train.micro_batch == "auto" else recipe.train.micro_batch
    if compiled:
        model.model.compile(dynamic=False)
    clip = recipe.train.clip_norm or float("inf")
    with torch.autograd.set_multithreading_enabled(False):
        for batch in RandomRows(recipe, rows, seq_len, clock.total):
            tokens = batch["input_ids"].to(device, non_blocking=True)
            while not _add_gradients(model, tokens, micro_batch):
                optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                micro_batch //= 2
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.batch_end()
    return clock.row(recipe.name, rows * seq_len, seq_len, micro_batch, _mfu_per_token(recipe, seq_len))


def _add_gradients(model, tokens: torch.Tensor, micro_batch: int) -> bool:
    """Forward and backward of all rows; False if `micro_batch` of them, more than one, do not fit into the memory."""
    try:
        for part in tokens.split(micro_batch):
            with torch.autocast("cuda", torch.bfloat16) if tokens.is_cuda else contextlib.nullcontext():
                loss = model(input_ids=part, labels=part, use_cache=False).loss * (len(part) / len(tokens))
            loss.backward()
    except torch.OutOfMemoryError:
        if micro_batch == 1:
            raise
        return False
    return True


def _mfu_per_token(recipe, seq_len: int) -> float | None:
    """By the full-attention step that the Llama makes."""
    blocks = {"full": {"kind": "full", "n_heads": _heads(recipe)[0], "n_kv_heads": _heads(recipe)[1]}}
    model = recipe.model.model_copy()
    full = type(model).model_validate(
        {
            **model.model_dump(include={"d_model", "vocab_size", "max_seq_len", "tie_embeddings"}),
            "ffn": {"kind": "swiglu", "d_ff": _width(recipe)},
            "blocks": blocks,
            "layers": f"full*{_depth(recipe)}",
        }
    )
    peak = peak_flops(torch.cuda.get_device_name(), "bf16") if torch.cuda.is_available() else None
    return None if peak is None else 3 * model_cost(full, seq_len).flops_per_token / peak


def _depth(recipe) -> int:
    return len(recipe.model.expanded())


def _heads(recipe) -> tuple[int, int]:
    """Query heads and key heads of the first layer."""
    layer = recipe.model.expanded()[0]
    n_heads = getattr(layer.config, "n_heads", None)
    if n_heads is None:
        raise ZooError(
            f"{recipe.name}: the block {layer.config.kind} has no n_heads, so there is no Llama of this shape"
        )
    return n_heads, getattr(layer.config, "n_kv_heads", None) or n_heads


def _width(recipe) -> int:
    """Width of the first layer's feed-forward."""
    ffn, d_model = recipe.model.expanded()[0].feed_forward, recipe.model.d_model
    if not hasattr(ffn, "d_ff"):
        raise ZooError(f"{recipe.name}: the feed-forward {ffn.kind} has no d_ff, so there is no Llama of this shape")
    if ffn.active_parameters(d_model) != ffn.parameters(d_model):
        raise ZooError(
            f"{recipe.name}: the feed-forward {ffn.kind} is a mixture of experts, so there is no Llama of this shape"
        )
    return ffn.d_ff


def _llama(recipe, seq_len: int, on_gpu: bool):
    from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # Under this name transformers makes no mask, and attention is causal. Under the name "sdpa" it makes one when it is
    # compiled, and attention then reads every key: three times slower at 8,192 tokens.
    AttentionInterface.register("causal_sdpa", sdpa_attention_forward)
    if on_gpu:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    model, (n_heads, n_kv_heads) = recipe.model, _heads(recipe)
    config = LlamaConfig(
        hidden_size=model.d_model,
        intermediate_size=_width(recipe),
        num_hidden_layers=_depth(recipe),
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        vocab_size=model.vocab_size,
        max_position_embeddings=seq_len,
        tie_word_embeddings=model.tie_embeddings,
        rms_norm_eps=model.norm_eps,
        attn_implementation="causal_sdpa",
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)
