"""The recipe: what a YAML file says, read with the place of every value, checked and expanded. No torch."""

from zoo.recipe.config import LayerConfig, ModelConfig, Recipe
from zoo.recipe.reading import load_data_section, load_recipe, recorded_recipe

__all__ = ["LayerConfig", "ModelConfig", "Recipe", "load_data_section", "load_recipe", "recorded_recipe"]
