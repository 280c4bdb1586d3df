"""The shape of the code: narrow lines, short files and functions, typed signatures, imports that point down."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "finetune"
WIDTH, FILE_LINES, FUNCTION_LINES, DEPTH, PARAMETERS = 120, 300, 50, 4, 8
# 10,000 lines more than at first: files as people have them, flags as they type them, Python, trackers, GGUF, bounds
# for what comes from elsewhere, corpora by datatrove, runs on storage, ranks that are watched, saves in the background
CORE_LINES, TOOL_LINES = 32_282, 4_507

# what each package may import: those of an earlier line. Commands (finetune/NAME.py) may import all of them.
LAYERS = (
    {"common"},
    {"config"},
    {"gpt", "data"},
    {"runtime", "corpus"},
    {"runs"},
    {"evaluation"},
    {"training"},
    {"publishing"},
    {"tools"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TOOL_COMMANDS = {"plan", "doctor", "report", "diagnose", "compare"}
# commands of the core that end with a tool: training with a report, preparation with the doctor's findings
END_WITH_A_TOOL = {"finetune.train", "finetune.prepare"}

ON_TOP = {"__main__", "api", "run"}  # use the commands

OLD_MODULES = """
    cli recipe network data.bins data.pieces data.cache data.similar data.encoding data.doctor data.copied
    data.columns data.parts evaluation.evaluation evaluation.compare evaluation.losses evaluation.report
    evaluation.inputs gpt.ops gpt.weights planning publishing.directory reporting training.card training.progress
    training.checkpoint training.corpus training.lora training.sampling training.machine training.sharding
    training.memory training.isolation training.guard training.start training.loop training.optim training.recover
""".split()
OLD_NAMES = """
    assemble ready take_up begin_again settle _look _introduce _begin _finish whole gathered late exactly
    keep_memory _check_company check_shares Needs needs takes shrink use_less_memory what_would_fit as_before
    first_that_fits Outcome Watch judge taken Order WeightedOrder Passes damage forget survey named Followers Grams
    plain adapt FixedStep _exact_head Subject told HOLES FILLED PROGRAM FIRST_USE ROUNDING PART NOISE
""".split()


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def tree(name):
    return ast.parse(SOURCES[name])


def functions(parsed):
    return [node for node in ast.walk(parsed) if isinstance(node, FUNCTIONS)]


def depth(node):
    """Nested blocks below a function: an if in a for in a with is 3. An elif is no block of its own."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS | ast.Lambda | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        block = isinstance(child, ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match) and not is_elif
        deepest = max(deepest, depth(child) + block)
    return deepest


def parameters(function):
    every = function.args
    listed = [*every.posonlyargs, *every.args, *every.kwonlyargs, *filter(None, [every.vararg, every.kwarg])]
    return [parameter for parameter in listed if parameter.arg not in ("self", "cls")]


def imports(name):
    """Modules of the package that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "finetune":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in SOURCES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in SOURCES}
    return found - {name}


def part(name):
    """The package or command of a module: `data` of finetune.data.split, `train` of finetune.train, "" of finetune."""
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", SOURCES)
def test_lines_and_files_are_short(name):
    lines = SOURCES[name].splitlines()
    assert not [number for number, line in enumerate(lines, 1) if len(line) > WIDTH]
    assert len(lines) <= FILE_LINES


@pytest.mark.parametrize("name", SOURCES)
def test_functions_are_short_flat_and_take_few_parameters(name):
    for function in functions(tree(name)):
        where = f"{name}.{function.name}"
        assert function.end_lineno - function.lineno + 1 <= FUNCTION_LINES, where
        assert depth(function) <= DEPTH, where
        assert len(parameters(function)) <= PARAMETERS, where


@pytest.mark.parametrize("name", SOURCES)
def test_every_signature_is_typed(name):
    for function in functions(tree(name)):
        missing = [parameter.arg for parameter in parameters(function) if parameter.annotation is None]
        assert not missing, f"{name}.{function.name}: {missing}"
        assert function.returns is not None, f"{name}.{function.name}: no return annotation"


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down(name):
    here = part(name)
    for imported in imports(name):
        there = part(imported)
        if not here or not there or here == there or here in ON_TOP:
            continue
        assert there in LEVEL, f"{name} imports the command {there}"
        if here in LEVEL:
            assert LEVEL[there] < LEVEL[here], f"{name} imports {imported}"
        elif there == "tools":
            assert here in TOOL_COMMANDS or name in END_WITH_A_TOOL, f"{name} imports {imported}"


def test_no_import_goes_in_a_circle():
    # `finetune` only says where its names come from
    remaining = {name: imports(name) - {"finetune"} for name in SOURCES}
    while free := [name for name, needed in remaining.items() if not needed & remaining.keys()]:
        for name in free:
            del remaining[name]
    assert not remaining


def test_the_model_stands_alone():
    assert imports("finetune.gpt.model") == {"finetune.gpt.attention", "finetune.gpt.loss", "finetune.gpt.recompute"}
    assert not imports("finetune.gpt.attention") | imports("finetune.gpt.loss")


def test_nothing_has_an_old_name():
    assert not [name for name in OLD_MODULES if f"finetune.{name}" in SOURCES]
    for name in SOURCES:
        defined = {node.name for node in ast.walk(tree(name)) if isinstance(node, FUNCTIONS | ast.ClassDef)}
        constants = {
            t.id
            for node in tree(name).body
            if isinstance(node, ast.Assign)
            for t in node.targets
            if isinstance(t, ast.Name)
        }
        assert not (defined | constants) & set(OLD_NAMES), name


def test_the_size_of_core_and_tools():
    lines = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    tools = {name for name in lines if part(name) == "tools"}
    assert sum(lines[name] for name in tools) <= TOOL_LINES
    assert sum(lines.values()) - sum(lines[name] for name in tools) <= CORE_LINES


def test_no_test_replaces_a_private_function():
    """Whatever a test patches has a public name."""
    for path in sorted((ROOT / "tests").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
                names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                assert not [name for name in names if str(name).split(".")[-1].startswith("_")], (
                    f"{path.name}:{node.lineno}"
                )
