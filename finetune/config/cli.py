"""One command line for every command: recipes, the environment and flags, all typed by a dataclass.

    options, origins = parse(Recipe, ["recipes/small.yaml", "--max_iters=100"], USAGE)

All problems are reported at once, one line each, with the file or flag, the key and the nearest known key."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import signal
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from finetune.common import console
from finetune.common.addresses import address_of, is_address, mirror_of, problem_of_address
from finetune.common.errors import Failure, UsageError
from finetune.common.formatting import message_lines
from finetune.common.machine import collect_rarely, drop_stray_ranks
from finetune.config.arguments import read_arguments
from finetune.config.auto_batch import count_blocks
from finetune.config.nearest_key import nearest
from finetune.config.options import BOOLEANS, convert, find_problems, help_text
from finetune.config.paths import KEYS as PATH_KEYS
from finetune.config.paths import as_typed, expand_home
from finetune.config.recipe_file import Entry

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
SOON_SECONDS = 2  # after Ctrl-C, in which an error is its consequence
FINAL = (2, 3, 4, 5)  # exit codes of errors that another start would meet again
WRITTEN = ("out_dir", "to", "out")  # keys of directories and files that a command writes
# torch.distributed's errors when another process of the run has ended
CONNECTION_LOST = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe", re.IGNORECASE)


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a command's `main(argv)` and exit: 2 after a UsageError, the code of a Failure, 130 after Ctrl-C."""
    collect_rarely()
    console.open_streams()
    drop_stray_ranks()
    debug, interrupts = False, []
    try:
        with _noting_interrupts(interrupts):
            argv, debug = take_debug(sys.argv[1:])
            _check_working_directory()
            code = main(argv)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:  # after --help, or with what scripts/ have to say
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except Exception as error:
        is_told = isinstance(error, UsageError | Failure)
        # what Ctrl-C leaves half imported ends in errors of any kind, such as a RuntimeError around it
        is_recent = any(time.monotonic() - moment < SOON_SECONDS for moment in interrupts)
        is_stopped = is_recent or isinstance(error.__cause__, KeyboardInterrupt)
        code = 130 if is_stopped and not (is_told or debug) else _print_error(error, debug)
        if code is None:
            raise
    if failure := console.write_out():
        code = code or _print_error(failure)
    sys.exit(code or 0)


@contextlib.contextmanager
def _noting_interrupts(seen: list[float]) -> Generator[None]:
    """Note in `seen` when Ctrl-C came within this block, each of which raises KeyboardInterrupt as usual."""

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(time.monotonic())
        raise KeyboardInterrupt

    # not where it is ignored, as in the background; SIG_DFL is ours, while modules are imported
    is_usual = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL)
    if is_usual and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _check_working_directory() -> None:
    """Raise UsageError if it was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working directory was deleted; cd into another") from None


def take_debug(argv: list[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, which every command has, and its value. Raises UsageError."""
    others, remaining, debug = [], list(argv), False
    while remaining:
        arg = remaining.pop(0)
        word, equals, text = arg.partition("=")
        if arg == "--":
            return [*others, arg, *remaining], debug
        if word.lower() in ("--no-debug", "--no_debug") and not equals:
            debug = False
        elif word.lower() != "--debug":
            others.append(arg)
        else:
            is_given = not equals and bool(remaining) and remaining[0].lower() in BOOLEANS
            text = text if equals else remaining.pop(0) if is_given else "true"
            if text.lower() not in BOOLEANS:
                raise UsageError(f"--debug: expected true or false, got {text!r}")
            debug = BOOLEANS[text.lower()]
    return others, debug


def _print_error(error: Exception, debug: bool = False) -> int | None:
    """Print an error without its traceback, or with it to `debug`, and return the exit code; None if the traceback must
    be seen."""
    # rank 0, and the first rank of each node
    prints_errors = "0" in (os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK"))
    if isinstance(error, (UsageError, Failure)):
        code = 2 if isinstance(error, UsageError) else error.code
        if debug:
            traceback.print_exception(error)
        elif prints_errors or error.alone:
            print(message_lines(error), file=sys.stderr, flush=True)
        else:
            time.sleep(1)  # a launcher ends all processes after the first: rank 0 must print before that
        if prints_errors and code in FINAL and not error.alone:  # one rank's own trouble may be over then
            _end_torchrun()
        return code
    if debug:
        return None
    if isinstance(error, OSError):
        print(f"{type(error).__name__}: {message_lines(error)} (--debug=true shows where)", file=sys.stderr)
        return 1
    if "RANK" not in os.environ or not CONNECTION_LOST.search(str(error)):
        return None
    if prints_errors:
        print("another process of this run has ended, see its error", file=sys.stderr)
    return 1


def die_with_launcher() -> None:
    """Ask the kernel (Linux) for a SIGTERM when the launcher dies; `accelerate launch` does not pass signals on."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # the launcher died before prctl
            os.kill(os.getpid(), signal.SIGTERM)


def _end_torchrun() -> None:
    """Ask torchrun to end where it would start the processes again."""
    starts_left = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0)
    starts_left -= int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)
    if starts_left > 0 and sys.platform != "win32":
        os.kill(os.getppid(), signal.SIGTERM)


def check_run_dir(out_dir: str | None) -> str | None:
    """The problem, if `out_dir` is given and is no directory, with the runs that are here."""
    if out_dir is None or Path(out_dir).is_dir():
        return None
    hub = f"; a model of the Hub is given as --init_from={out_dir}" if not Path(out_dir).is_absolute() else ""
    runs = sorted({str(path.parent.parent) for path in Path(".").glob("*/best/config.json")})
    return f"out_dir {out_dir}: no such directory" + (f"; runs here: {', '.join(runs)}" if runs else "") + hub


def parse(cls: type[Options], argv: list[str], usage: str) -> tuple[Options, dict[str, str]]:
    """`(options, origins)`: an instance of `cls`, and the origin of each given key: 'recipes/x.yaml:3', 'FINETUNE_KEY'
    or '--key'. `read_arguments` says what the arguments mean.

    `cls.problems()`, if there is one, yields `(key, message)` of values that have the right type but cannot be used.
    Raises UsageError; prints help and exits 0 on --help.
    """
    flags = argv[: argv.index("--")] if "--" in argv else argv
    if "--help" in flags or "-h" in flags:
        print(help_text(cls, usage))
        sys.exit(0)
    problems: list[str] = []
    names = [field.name for field in dataclasses.fields(cls)]
    entries, sources = read_arguments(cls, argv, problems)
    values, origins = _convert_entries(cls, entries, problems)
    if values.get("batch_size") == "auto":
        count_blocks(values, entries, cls)
    if "sources" in names:
        values["sources"] = list(map(expand_home, sources))
    options = cls(**values)
    # after a parse error only given keys count: a default may be wrong because its key was not read
    found = [(name, message) for name, message in find_problems(options) if name in origins or not problems]
    problems += [f"{Entry(name, None, origins.get(name, '')).place}: {message}" for name, message in found]
    if problems:
        raise UsageError("\n".join(problems))
    for name in {entry.key for entry in entries if is_address(entry.text)} & values.keys():
        if address_of(values[name]):
            from finetune.config import mirror  # takes as long as all that is imported above

            mirror.fetch(Path(values[name]))
    return options, origins


def _convert_entries(
    cls: type[DataclassInstance], entries: list[Entry], problems: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """`(values, origins)` of the entries; a later entry replaces an earlier one."""
    fields, hints = {field.name: field for field in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    effective: dict[str, Entry] = {}
    for entry in entries:
        name, text, origin = entry
        if name not in fields or name == "sources":
            place = f"unknown flag {origin}" if entry.is_flag else f"{origin}: unknown key '{name}'"
            is_python = ".py:" in origin  # a config of nanoGPT, which would quote a value: it is told the key alone
            said = "false" if is_python or not text else text
            form = ("--", text or "", "=") if entry.is_flag else ("", said, ": ")
            problems.append(f"{place}." + nearest(name, fields, *form))
            continue
        try:
            values[name] = convert(_local(fields[name], text) if text and name in PATH_KEYS else text, hints[name])
        except ValueError as error:
            problems.append(f"{entry.place}: {error}")
            continue
        origins[name], effective[name] = origin, entry
    for name, entry in effective.items():  # what a later entry replaced is no problem
        if entry.in_recipe and (problem := _not_for_recipes(fields[name], entry.text, values[name])):
            problems.append(f"{entry.place}: {problem}")
    return values, origins


def _local(field: dataclasses.Field[Any], text: str) -> str:
    """A path with ~ as the home directory; an address as the directory here for it. Raises ValueError."""
    if not is_address(text):
        return as_typed(field.name, text)
    is_run = field.name == "out_dir" and not field.metadata.get("local")
    if is_run or field.name == "init_from":
        return str(mirror_of(text))
    if field.name in WRITTEN:
        raise ValueError(problem_of_address(text) or f"{text} is an address, and this command writes to a directory")
    return text


def _not_for_recipes(field: dataclasses.Field[Any], text: str | None, value: object) -> str | None:
    """Why a recipe, which may come from somebody else, cannot set this value; None if it can."""
    if field.metadata.get("flag_only") and value != field.default:
        return f"can only be given on the command line, as --{field.name}={text}"
    if str(text).startswith("FILE:"):
        return f"a recipe must not read a file into a run ({text}); give it as --{field.name}={text}"
    if field.name in PATH_KEYS and ".." in re.split(r"""[/\\,"']""", str(text)):
        return f"a recipe must not reach above the working directory ({text}); give it as --{field.name}={text}"
    return None
