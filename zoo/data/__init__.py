"""Data: sources of text, tokenizers, rows packed into MDS shards, and the loader that feeds training.

    prepared = prepare(recipe.data, max_seq_len=..., vocab_size=..., seed=...)     once; found again by its content
    batches = loader(prepared, "train", batch_size=32, shuffle=True, seed=17)      a Composer DataSpec

Names are imported when first used, so that reading a recipe (`zoo.data.config`) imports neither torch nor Streaming.
"""

from importlib import import_module

_EXPORTS = {
    "DataConfig": "zoo.data.config",
    "DataError": "zoo.data.errors",
    "PreparedData": "zoo.data.prepared",
    "loader": "zoo.data.loading",
    "prepare": "zoo.data.preparing",
    "prepare_command": "zoo.data.show",
    "prepare_for": "zoo.data.show",
    "remove_stale": "zoo.data.stale",
    "show_command": "zoo.data.show",
    "show_samples": "zoo.data.show",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        function = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = function
        return function
    raise AttributeError(f"module 'zoo.data' has no attribute {name!r}")
