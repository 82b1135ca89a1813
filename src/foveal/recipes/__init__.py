"""Recipes: named, complete training configurations (TOML), and what the commands do with them."""

from foveal.recipes.config import load_recipe, recipe_names
from foveal.recipes.settings import RunConfig

__all__ = ["RunConfig", "load_recipe", "recipe_names"]
