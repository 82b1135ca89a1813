"""Recipes: named, complete training configurations (TOML), and what the commands do with them."""

from foveal.recipes.config import RunConfig, load_recipe, recipe_names

__all__ = ["RunConfig", "load_recipe", "recipe_names"]
