"""The packages of the wheel; all else is in setup.cfg. `recipes/` becomes finetune/packaged_recipes."""

from setuptools import find_packages, setup

RECIPES = {"finetune.packaged_recipes": "recipes", "finetune.packaged_recipes.accelerate": "recipes/accelerate"}

setup(packages=[*find_packages(include=["finetune*"]), *RECIPES], package_dir=RECIPES)
