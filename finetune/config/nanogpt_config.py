"""nanoGPT's config/*.py as recipes: assignments of literals, read and never executed."""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping

from finetune.common.errors import UsageError
from finetune.config.options import BOOLEANS

ORIGIN = "nanoGPT's default"
# of nanoGPT's train.py, where ours is another one; a config/*.py relies on them
DEFAULTS = {
    "init_from": "scratch",
    "dataset": "openwebtext",
    "batch_size": "12",
    "gradient_accumulation_steps": "40",
    "max_iters": "600000",
    "learning_rate": "6e-4",
    "eval_interval": "2000",
}
SCHEDULE = {"warmup_iters": "2000", "lr_decay_iters": "600000", "min_lr": "6e-5"}
WITHOUT_DECAY = {"warmup_iters": "0"}  # decay_lr = False leaves the rate constant from the first update on
# keys that say nothing here, with the value that changes nothing
DROPPED = {"backend": None, "bias": "true"}
OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def read_assignments(path: str, source: str, problems: list[str]) -> Iterator[tuple[str, str | None, int]]:
    """(key, text, line) of each `key = literal`; other statements than imports are problems. Raises UsageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash in a text
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UsageError(f"{path}{line}: not Python: {getattr(error, 'msg', None) or error}") from None
    for node in tree.body:
        place = f"{path}:{node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue  # for names that are computed, which are problems where they are used
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        elif isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        else:
            targets, value = [], ast.Constant(None)
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            problems.append(f"{place}: only lines of 'key = value' are read, and nothing is executed")
            continue
        key = targets[0].id
        try:
            text = _text_of(_literal(value))
        except ValueError:
            if not key.startswith("wandb_"):  # only a name; the default is that of out_dir
                told = f"{ast.unparse(value)} is computed, and nothing is executed; write the value"
                problems.append(f"{place}: {key}: {told}")
            continue
        if key not in DROPPED or text != (DROPPED[key] or text):
            yield key, text, node.lineno


def is_constant(given: Mapping[str, str]) -> bool:
    """Whether these keys make the learning rate constant. nanoGPT then reads no key of SCHEDULE."""
    return BOOLEANS.get(given.get("decay_lr", "").lower()) is False


def _literal(node: ast.expr) -> object:
    """The value of a literal, or of arithmetic with numbers such as 5 * 8. Raises ValueError."""
    if not isinstance(node, ast.BinOp) or type(node.op) not in OPERATORS:
        return ast.literal_eval(node)
    left, right = _literal(node.left), _literal(node.right)
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        raise ValueError("only numbers are computed")
    try:
        return OPERATORS[type(node.op)](left, right)
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _text_of(value: object) -> str | None:
    """A literal as it would be written in a recipe. Raises ValueError for lists and the like."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    raise ValueError(f"{value!r} is not a single value")
