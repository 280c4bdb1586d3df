"""Recipe files: flat YAML, read with line numbers and written with comments."""

import dataclasses
import difflib
import math
import os
import re
from pathlib import Path

MAX_RECIPE_BYTES = 256 * 1024
COMMENT = re.compile(
    r"""\s*[\w"']+\s*:\s*(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^"'#\s].*?|)\s+#\s*(.*)"""
)  # on a line 'key: value'


def comments_by_key(origins):
    """{key: {"origin", "why"}} for the `origins` of `parse`: where each was given, and what the comment on that line of
    a recipe says."""
    lines = {}
    for origin in origins.values():
        path, _, _ = origin.rpartition(":")
        if path and path not in lines:
            with open(path, encoding="utf-8") as file:
                lines[path] = file.read().splitlines()
    found = {}
    for name, origin in origins.items():
        path, _, number = origin.rpartition(":")
        comment = COMMENT.match(lines[path][int(number) - 1]) if path else None
        why = comment[1].strip() if comment else ""
        found[name] = {
            "origin": origin,
            "why": "" if why.endswith(" in this run") else why,
        }  # it speaks of the run whose recipe.yaml this is
    return found


def read_recipe(path, problems):
    """[(key, text, 'path:line')] of a flat YAML file; what is wrong goes to `problems`.

    Only the node graph is built, nothing is constructed, so tags cannot run anything and aliases cannot expand.
    """
    import yaml

    if not path.endswith((".yaml", ".yml")):
        problems.append(f"{path}: a recipe is a .yaml file; flags are written --key=value")
        return []
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}" + nearest_recipe(path))
        return []
    if len(raw) > MAX_RECIPE_BYTES:
        problems.append(f"{path}: over {MAX_RECIPE_BYTES // 1024} KB, which is no recipe")
        return []
    try:
        root = yaml.compose(raw.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        problems.append(f"{path}: byte {error.start} is not UTF-8")
        return []
    except RecursionError:
        problems.append(f"{path}: nested too deeply for a recipe")
        return []
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problems.append(
            f"{path}{f':{mark.line + 1}' if mark else ''}: not YAML: {getattr(error, 'problem', None) or error}"
        )
        return []
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        problems.append(f"{path}: a recipe is lines of 'key: value'")
        return []
    if "distributed_type" in [name.value for name, _ in root.value]:
        problems.append(
            f"{path}: configures accelerate launch and is no recipe; accelerate launch --config_file={path} -m"
            " finetune.train RECIPE.yaml"
        )
        return []
    given, seen = [], {}
    for name_node, node in root.value:
        place = f"{path}:{name_node.start_mark.line + 1}"
        name = getattr(name_node, "value", None)
        if not isinstance(name, str):
            problems.append(f"{place}: a key must be a word")
        elif name in seen:
            problems.append(f"{place}: key '{name}' is given twice, first in line {seen[name]}")
        elif (
            not isinstance(node, yaml.ScalarNode)
            or not node.tag.startswith("tag:yaml.org,2002:")
            or "python" in node.tag
        ):
            problems.append(f"{place}: {name}: expected a single plain value")
        else:
            if name == "auto_batch_size":  # in recipe.yaml of earlier runs, after the number in batch_size
                name, node.value = "batch_size", "auto" if node.value == "true" else None
                if node.value is None:
                    continue
            null = node.style is None and node.tag == "tag:yaml.org,2002:null"
            given.append((name, None if null else node.value, place))
        seen.setdefault(name if isinstance(name, str) else id(name_node), name_node.start_mark.line + 1)
    return given


def nearest(name, names, prefix):
    close = difflib.get_close_matches(name, [n for n in names if n != "sources"], n=1)
    return f" Did you mean '{prefix}{close[0]}'?" if close else " --help lists them all."


def nearest_recipe(path):
    folder = os.path.dirname(path) or "."
    there = (
        [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".yaml")]
        if os.path.isdir(folder)
        else []
    )
    close = difflib.get_close_matches(path, there, n=1) or there[:1]
    return f". Did you mean {close[0]}?" if close else ""


def dump(recipe, derived):
    """The recipe as YAML that is itself a recipe: what was given or is the default stands as a value, and what was
    worked out stays open with the figure of this run beside it, so that changing one key moves what follows from it."""
    lines = []
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if value is None:
            note = f"  # {derived[field.name]} in this run" if derived.get(field.name) is not None else ""
            lines.append(f"{field.name}: null{note}")
        else:
            if field.metadata.get("path"):  # a recipe cannot say it with ..
                value = ",".join(
                    str(Path(part).resolve()) if ".." in Path(part).parts else part for part in value.split(",")
                )
            lines.append(f"{field.name}: {scalar(value)}")
    return "\n".join(lines) + "\n"


def scalar(value):
    import yaml

    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"', width=math.inf).strip()
    return str(value).lower() if isinstance(value, bool) else repr(value)
