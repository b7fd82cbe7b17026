"""attention-zoo: attention architectures as YAML recipes, trained and compared side by side.

`load_recipe(path)`, `build_model(recipe)`, `load(run)`, `load_tokenizer(run)` and `generate(model, prompts)` are
imported when first used, so that `import zoo` costs nothing and `zoo.kernels` works where only torch and triton are
installed.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "load_recipe": "zoo.recipe",
    "build_model": "zoo.model",
    "load": "zoo.runs.weights",
    "load_tokenizer": "zoo.runs.weights",
    "generate": "zoo.inference.generate",
}
__all__ = ["build_model", "generate", "load", "load_recipe", "load_tokenizer"]


def __getattr__(name: str):
    if name in _EXPORTS:
        function = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = function
        return function
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
