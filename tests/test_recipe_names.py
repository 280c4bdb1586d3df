"""Recipes and launch files found by name."""

from pathlib import Path

import pytest

from finetune.common.errors import UsageError
from finetune.config.recipe_names import find_launch_file, find_recipe, launch_names, recipe_names

RECIPES = Path(__file__).parents[1] / "recipes"


def test_names_are_the_files():
    assert recipe_names() == sorted(path.stem for path in RECIPES.glob("*.yaml")) and "small" in recipe_names()
    assert launch_names() == sorted(path.stem for path in (RECIPES / "accelerate").glob("*.yaml"))
    for name in recipe_names():
        assert find_recipe(name).read_bytes() == (RECIPES / f"{name}.yaml").read_bytes()
    for name in launch_names():
        assert find_launch_file(name).read_bytes() == (RECIPES / "accelerate" / f"{name}.yaml").read_bytes()


def test_a_file_stays_itself(tmp_path):
    Path("small").mkdir()  # a folder does not hide a recipe
    assert find_recipe("small").is_file()
    Path("mine.yaml").write_text("epochs: 1\n")
    assert find_recipe("mine.yaml") == Path("mine.yaml")
    assert find_recipe("no/such.yaml") == Path("no/such.yaml")  # refused by who reads it


@pytest.mark.parametrize(
    "name, message",
    {
        "smal": "smal: no such recipe and no such file. Did you mean small?",
        "Small": "Did you mean small?",
        "XL-LoRA": "Did you mean xl_lora?",
        "zzz": "There are code, ",
        "config/train_shakespear_char.py": "no such file. Did you mean config/train_shakespeare_char.py?",
        "shakespeare_char.py": "shakespeare_char.py: no such recipe and no such file. There are code, ",
        "small.yaml": "the recipe that comes with finetune is small",
        "recipes/small.yaml": "the recipe that comes with finetune is small",
        "out": "out: is a directory; its recipe is out/recipe.yaml",
        "": "no such recipe",
    }.items(),
)
def test_unknown_names_are_refused(name, message):
    Path("out").mkdir()
    Path("out/recipe.yaml").touch()
    Path("config").mkdir()
    Path("config/train_shakespeare_char.py").touch()
    with pytest.raises(UsageError) as error:
        find_recipe(name)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_recipe_is_no_launch_file():
    with pytest.raises(UsageError, match="small: no such launch file"):
        find_launch_file("small")
