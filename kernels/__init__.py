"""Attention functions on tensors: torch, and Triton where it is chosen; nothing else of the zoo.

Every function has one public signature and several implementations; `dispatch` chooses one for each call, and
`explain()` says which and why. Submodules are imported at first use.

Legend of shape suffixes: B batch, T tokens, H query heads, K key/value heads, D content width, R rotary width, V value
width, N compression slots, or slots of a cache, J heads of a cache, L tokens of a block, G query groups, S chosen
blocks, M selection blocks, P patterns.
"""

from importlib import import_module

OPERATIONS = {  # operation -> the module that registers its implementations
    "full_attention": "zoo.kernels.full",
    "window_attention": "zoo.kernels.window",
    "mean_pool": "zoo.kernels.pooling",
    "gather_blocks": "zoo.kernels.pooling",
    "compression_attention": "zoo.kernels.compression",
    "choose_blocks": "zoo.kernels.choice",
    "selection_attention": "zoo.kernels.selection",
    "gated_sum": "zoo.kernels.combine",
    "rotate": "zoo.kernels.rotary",
    "split_heads": "zoo.kernels.split",
    "rms_norm": "zoo.kernels.norm",
    "add_rms_norm": "zoo.kernels.residual",
    "swiglu_mlp": "zoo.kernels.swiglu",
    "grouped_linear": "zoo.kernels.grouped",
    "linear_attention": "zoo.kernels.linear",
    "short_convolution": "zoo.kernels.convolution",
    "cached_attention": "zoo.kernels.decode",
    "cached_choose_blocks": "zoo.kernels.decode_choice",
    "cached_selection_attention": "zoo.kernels.decode",
    "write_slots": "zoo.kernels.slots",
    "pool_slots": "zoo.kernels.slots",
}
_EXPORTS = OPERATIONS | {
    "Documents": "zoo.kernels.documents",
    "n_slots": "zoo.kernels.documents",
    "n_groups": "zoo.kernels.documents",
    "Heads": "zoo.kernels.split",
    "Piece": "zoo.kernels.split",
    "explain": "zoo.kernels.dispatch",
    "use_implementation": "zoo.kernels.dispatch",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        for module in set(_EXPORTS.values()):  # all: a graph being traced must not see one more operation registered
            import_module(module)
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'zoo.kernels' has no attribute {name!r}")
