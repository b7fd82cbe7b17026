"""The Python reference: which objects are public. MkDocs fills in their docstrings (mkdocstrings)."""

from importlib import import_module
from typing import Any

PATH = "reference/python.md"
# Packages whose `__all__` is public, and what else a reader needs, by module.
_PACKAGES = {
    "zoo": "Recipes, models, runs.",
    "zoo.blocks": "The registry of blocks, and building one.",
    "zoo.kernels": "Attention as functions on tensors. Shapes are `[batch, tokens, heads, width]`.",
}
_FURTHER = {
    "zoo.blocks.config": ("What a block of your own subclasses.", ["BlockConfig", "AttentionConfig"]),
    "zoo.blocks.cost": ("What it says about its cost.", ["Cost"]),
    "zoo.blocks.about": ("What its page says beyond its fields.", ["About", "Paper"]),
    "zoo.blocks.base": ("The module of every kind made of a projection and patterns.", ["Attention", "Context"]),
    "zoo.recipe.schedule": ("Layer schedules.", ["parse", "expand", "format_schedule"]),
    "zoo.api": ("What `zoo.compare` returns.", ["Comparison"]),
    "zoo.counting.model_cost": ("What a model costs, counted from its recipe.", ["model_cost", "ModelCost"]),
    "zoo.inference.generate": ("What `zoo.generate` returns.", ["Generation", "Result"]),
    "zoo.inference.rows": ("What a generation yields.", ["Piece"]),
    "zoo.inference.sampling": ("How tokens are drawn: the further arguments of `zoo.generate`.", ["Sampling"]),
    "zoo.inference.stats": ("What a generation took.", ["Stats", "CacheBytes"]),
    "zoo.counting.cache_sizes": ("The cache by kind of layer, counted from a recipe.", ["cache_sizes", "CacheSize"]),
    "zoo.export.writing": ("What `zoo export` does.", ["export"]),
    "zoo.report.maps": ("Attention maps.", ["visibility", "random_visibility", "draw"]),
}


def python_page() -> str:
    """Markdown of the page: a directive of mkdocstrings for each public object."""
    parts = ["# Python", "Whatever is listed here is meant to be used; everything else may change without notice."]
    for package, about in _PACKAGES.items():
        module = import_module(package)
        parts += [f"## {package}", about]
        parts += [_directive(f"{package}.{name}", getattr(module, name)) for name in module.__all__]
    for name, (about, objects) in _FURTHER.items():
        module = import_module(name)
        parts += [f"## {name}", about]
        parts += [_directive(f"{name}.{inner}", getattr(module, inner)) for inner in objects]
    return "\n\n".join(parts) + "\n"


def _directive(path: str, found: Any) -> str:
    """The object where it is defined, under the name by which it is imported."""
    return f'::: {found.__module__}.{found.__qualname__}\n    options:\n      heading: "{path}"'
