"""The recipes that come with finetune: list them, show one, or copy one to change it.

finetune recipes small --to=mine.yaml
"""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.common.files import read_text, write_file
from finetune.common.formatting import printable
from finetune.config import recipe_names
from finetune.config.cli import parse, run
from finetune.config.options import option

USAGE = """usage: finetune recipes
       finetune recipes NAME [--to=FILE.yaml]

Without a name: the recipes, and the configurations of accelerate launch, with a line each. With a name: that file on
standard output, or copied to --to."""
WIDTH = 110  # of a description


@dataclass
class Options:
    sources: list[str] = option([], "the name of a recipe")
    to: str | None = option(None, "copy the recipe to this file")
    overwrite: bool = option(False, "replace the file at --to")

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.sources) > 1:
            yield "NAME", f"one recipe at a time, got {', '.join(self.sources)}"
        if self.to is None:
            if self.overwrite:
                yield "overwrite", "has no effect without --to=FILE.yaml"
            return
        path = Path(self.to)
        if not self.sources:
            yield "to", "which recipe? finetune recipes small --to=mine.yaml"
        if path.suffix not in recipe_names.SUFFIXES:
            yield "to", f"a recipe is a .yaml file, got {self.to}"
        elif path.is_dir():
            yield "to", f"{self.to} is a directory"
        elif os.path.lexists(path) and not self.overwrite:
            yield "to", f"{self.to} exists; --overwrite=true replaces it"
        elif not path.parent.is_dir():
            yield "to", f"there is no directory {path.parent}"


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    if not options.sources:
        print("\n".join(_list()))
        return
    name = options.sources[0]
    is_launch_file = name in recipe_names.launch_names()
    source = recipe_names.find_launch_file(name) if is_launch_file else recipe_names.find_recipe(name)
    if options.to is None:
        print("\t".join(map(printable, read_text(source).split("\t"))), end="")
        return
    try:
        write_file(options.to, _named(read_text(source), source, options.to))
    except OSError as error:
        raise UsageError(f"--to: {options.to} cannot be written: {error.strerror}") from None
    use = f"accelerate launch --config_file={shlex.quote(options.to)}" if is_launch_file else "finetune train"
    print(f"{name} copied to {options.to}; {use} {'-m finetune.train RECIPE' if is_launch_file else options.to}")


def _named(text: str, source: Path, to: str) -> str:
    """The recipe whose command, in the first line, names the copy."""
    command, *rest = text.splitlines(keepends=True)
    name = rf"(?<=train ){source.stem}(?=\s)|[\w/]*\b{source.stem}\.yaml"
    return "".join([re.sub(name, lambda found: shlex.quote(to), command, count=1), *rest])


def _list() -> Iterator[str]:
    names, launch = recipe_names.recipe_names(), recipe_names.launch_names()
    width = max(map(len, [*names, *launch]))
    yield "recipes, for finetune train NAME:"
    for name in names:
        yield f"  {name:{width}}  {describe(read_text(recipe_names.find_recipe(name)))}"
    yield "configurations, for accelerate launch --config_file=FILE after finetune recipes NAME --to=FILE:"
    for name in launch:
        yield f"  {name:{width}}  {describe(read_text(recipe_names.find_launch_file(name)))}"


def describe(recipe: str) -> str:
    """What a recipe is for: as many sentences of its first comment, after the command, as a line holds."""
    comment = re.match(r"(?:#.*\n)+", recipe)
    lines = [line.removeprefix("#").strip() for line in comment[0].splitlines()[1:]] if comment else []
    first, *more = re.split(r"(?<=[.:]) (?=[A-Z])", " ".join(lines).strip())
    for sentence in more:
        if len(f"{first} {sentence}") > WIDTH or sentence.endswith(":"):
            break
        first += f" {sentence}"
    return first


if __name__ == "__main__":
    run(main)
