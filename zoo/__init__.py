"""attention-zoo: attention architectures as YAML recipes, trained and compared side by side.

    run = zoo.train("zoo:quickstart")
    print(zoo.compare([run, "zoo:tiny/full"]))

Every function is imported when it is first used, so that `import zoo` costs nothing and `zoo.kernels` works where only
torch and triton are installed.
"""

from importlib import import_module

__version__ = "0.2.0"

_EXPORTS = {
    "load_recipe": "zoo.recipe",
    "Recipe": "zoo.recipe",
    "RecipeError": "zoo.errors",
    "ZooError": "zoo.errors",
    "describe": "zoo.api",
    "train": "zoo.api",
    "compare": "zoo.api",
    "evaluate": "zoo.evaluation.run",
    "Run": "zoo.runs.handle",
    "build_model": "zoo.model",
    "load": "zoo.runs.weights",
    "load_tokenizer": "zoo.runs.weights",
    "generate": "zoo.inference.generate",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        function = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = function
        return function
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
