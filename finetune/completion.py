"""Completion of verbs, flags, their values and recipes by the TAB key, in bash, zsh and fish.

finetune completion bash
"""

import dataclasses
import importlib
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from finetune.config.cli import parse, run
from finetune.config.options import option
from finetune.config.recipe_names import launch_names, recipe_names
from finetune.config.verbs import VERBS, describe

USAGE = """usage: finetune completion bash|zsh|fish

Prints a script for that shell. To have it in every shell from now on, add a line to the shell's start-up file:
  ~/.bashrc                   source <(finetune completion bash)
  ~/.zshrc, after compinit    source <(finetune completion zsh)
  ~/.config/fish/config.fish  finetune completion fish | source"""
SHELLS = ("bash", "zsh", "fish")
TAKE_A_RECIPE = ("train", "plan", "recipes")

# of bash and zsh: the flags and names of a verb, and the values of a flag
CASES = """\
    case $verb in
@FLAGS
    esac
    case $verb$word in
@VALUES
    esac"""
BASH = """\
_finetune() {
    local verb=${COMP_WORDS[1]} typed=${COMP_LINE:0:COMP_POINT} flags="" names="" values=""
    local word=${typed##*[[:space:]]}
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "@VERBS --help --version" -- "$word"))
        return
    fi
@CASES
    if [[ $word == --*=* ]]; then
        COMPREPLY=($(compgen -W "$values" -- "${word#*=}"))
    elif [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$word"))
        [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    else
        COMPREPLY=($(compgen -W "$names" -- "$word") $(compgen -f -- "$word"))
        compopt -o filenames 2>/dev/null
    fi
}
complete -o default -F _finetune finetune
"""

ZSH = """\
#compdef finetune
_finetune() {
    local verb=$words[2] word=$PREFIX flags="" names="" values=""
    if (( CURRENT == 2 )); then
        compadd -- @VERBS --help --version
        return
    fi
@CASES
    if [[ $word == --*=* ]]; then
        compset -P '*='
        if [[ -n $values ]]; then compadd -- ${=values}; else _files; fi
    elif [[ $word == -* ]]; then
        compadd -S '' -- ${=flags}
    else
        compadd -- ${=names}
        _files
    fi
}
compdef _finetune finetune
"""


@dataclass
class Options:
    sources: list[str] = option([], "bash, zsh or fish")

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.sources) != 1 or self.sources[0] not in SHELLS:
            yield "shell", f"must be bash, zsh or fish, got {' '.join(self.sources) or 'nothing'}"


@dataclass
class Flag:
    name: str
    values: list[str]  # [] if it is free, or a file
    help: str


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    shell = options.sources[0]
    print("\n".join(_fish()) if shell == "fish" else _fill(BASH if shell == "bash" else ZSH), end="")


def flags_of(verb: str) -> list[Flag]:
    """The flags of a verb, with the values that can be listed."""
    cls = importlib.import_module(f"finetune.{verb}").Options
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.name != "sources"]
    found = [Flag(field.name, _values(field.name, hints[field.name]), field.metadata["help"]) for field in fields]
    return [*found, Flag("help", [], "list the flags"), Flag("debug", ["true"], "show the traceback of an error")]


def _values(name: str, kind: typing.Any) -> list[str]:
    if name == "launch":
        return launch_names()
    if kind is bool:
        return ["true", "false"]
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [value for choice in typing.get_args(kind) for value in _values("", choice)]


def _names_for(verb: str) -> list[str]:
    """What a verb takes beside flags and files."""
    if verb == "completion":
        return list(SHELLS)
    return recipe_names() + (launch_names() if verb == "recipes" else []) if verb in TAKE_A_RECIPE else []


def _fill(script: str) -> str:
    """The script of bash or zsh, whose cases are alike."""
    script = script.replace("@CASES", CASES)
    flags, values = [], []
    for verb in VERBS:
        found = flags_of(verb)
        words = " ".join(f"--{flag.name}" + "=" * (flag.name != "help") for flag in found)
        flags.append(f'        {verb}) flags="{words}" names="{" ".join(_names_for(verb))}" ;;')
        values += [
            f'        {verb}--{flag.name}=*) values="{" ".join(flag.values)}" ;;' for flag in found if flag.values
        ]
    for mark, lines in {"@VERBS": [" ".join(VERBS)], "@FLAGS": flags, "@VALUES": values}.items():
        script = script.replace(mark, "\n".join(lines))
    return script


def _fish() -> Iterator[str]:
    for verb in VERBS:
        here = f"complete -c finetune -n '__fish_seen_subcommand_from {verb}'"
        yield f"complete -c finetune -f -n __fish_use_subcommand -a {verb} -d {_quoted(describe(verb))}"
        if names := _names_for(verb):
            yield f"{here} -a '{' '.join(names)}'"
        for flag in flags_of(verb):
            takes = "" if flag.name == "help" else f" -x -a '{' '.join(flag.values)}'" if flag.values else " -r"
            yield f"{here} -l {flag.name}{takes} -d {_quoted(flag.help)}"
    yield ""


def _quoted(text: str) -> str:
    """A text as fish reads it between single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


if __name__ == "__main__":
    run(main)
