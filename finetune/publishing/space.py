"""A Space that shows a model: a page with the report of its run, or an app that runs the model in the Hub."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import yaml

from finetune.common.commands import command
from finetune.common.errors import UsageError
from finetune.common.files import MANIFEST, read_json_object, sha256_of, write_json
from finetune.config.run_directory import REPORT
from finetune.gpt import pretrained, size
from finetune.publishing import card as cards
from finetune.publishing import space_app
from finetune.publishing.export import CARD, VERIFICATION
from finetune.publishing.repository import Refused, Repository, names, sending
from finetune.publishing.run_report import public_report
from finetune.runs import model_card
from finetune.runs.events import read_metrics

GRADIO = "6.31.0"  # which app.py was run with
PAGE = "index.html"
OURS = ("sdk", "sdk_version", "app_file", "models")  # keys of the card that are written anew
WELCOME = b"Welcome to your static Space!"  # on the page that the Hub puts into a new Space
ACTIVE = {
    "base",
    "embed",
    "form",
    "frame",
    "iframe",
    "link",
    "meta",
    "object",
    "script",
}  # tags that texts may not bring
Kind = Literal["static", "gradio"]


@dataclass(frozen=True)
class Shown:
    """What a Space shows."""

    directory: Path  # of the export
    run_dir: Path | None
    model: str | None = None  # USER/NAME, if it was pushed
    commit: str | None = None  # of that push


def check(run_dir: str | Path | None, kind: Kind) -> None:
    """Raise UsageError if there is no report to show."""
    if kind == "static" and not (run_dir and Path(run_dir, REPORT).is_file()):
        raise UsageError(f"space: {run_dir} has no {REPORT}, which a static Space shows; {command('report', run_dir)}")


def publish(name: str, kind: Kind, shown: Shown, private: bool, again: str) -> None:
    """Make the Space `name` hold a demo of the model, in one commit. Words of its owner in README.md stay. Raises
    Failure with exit code 4, on one line with the command `again`, unless the Space holds these files."""
    work = Path(tempfile.mkdtemp(prefix="finetune-space-"))
    try:
        with sending(f"the Space {name} was not published", f"again: {again}"):
            _publish(Repository(name, "space", options={"space_sdk": kind}), kind, shown, private, work)
    finally:
        shutil.rmtree(work)


def _publish(target: Repository, kind: Kind, shown: Shown, private: bool, work: Path) -> None:
    title = target.name.split("/")[-1]
    write(work, kind, title, shown)
    verify(work, kind, shown)
    target.open(private)
    earlier, held = target.manifest(), target.files.keys() - {".gitattributes"}
    theirs = {name for name in held - {CARD} if not _is_ours(target, name, earlier)}
    if theirs and not target.is_new and not _are_placeholders(target, theirs):
        way_out = "choose another name, or remove them there"
        raise Refused(f"it holds files that finetune did not write, or that were edited: {names(theirs)}; {way_out}")
    if edited := target.read(CARD):
        before, card = cards.decoded(edited), (work / CARD).read_text("utf-8")
        (work / CARD).write_text(cards.merge(before, card, OURS), encoding="utf-8")
    _write_manifest(work)
    files = {path.name: path for path in sorted(work.iterdir())}
    stale = held - files.keys()
    if not stale and not target.different(files):
        print(f"the Space {target.name} ({target.visibility}) shows this already; nothing to publish")
        return
    if replaced := held & {*target.different(files)} - {CARD, MANIFEST}:
        print(f"the Space {target.name}: replacing {names(replaced)}")
    if stale:
        print(f"the Space {target.name}: removing {names(stale)}")
    url = target.commit(files, stale, "Demo by finetune")
    print(f"published the Space {target.name} ({target.visibility}): {url}; all {len(files)} hashes agree")
    if kind == "gradio" and target.info.private:
        print("if the model is private too, the Space needs a secret HF_TOKEN that may read it; its settings take one")


def _is_ours(target: Repository, name: str, earlier: dict[str, dict[str, Any]]) -> bool:
    """Whether a file of the Space is as it was published."""
    if name == MANIFEST:
        return PAGE in earlier or "app.py" in earlier
    content = target.read(name) if name in earlier else None
    return content is not None and hashlib.sha256(content).hexdigest() == earlier[name].get("sha256")


def _are_placeholders(target: Repository, files: set[str]) -> bool:
    """Whether the Hub put these files there when a Space was made, which was not filled then."""
    return files == {PAGE, "style.css"} and WELCOME in (target.read(PAGE) or b"")


def write(work: Path, kind: Kind, title: str, shown: Shown) -> None:
    """Fill the directory of a Space."""
    events = list(read_metrics(shown.run_dir / "metrics.jsonl", print)) if shown.run_dir else []
    run = model_card.History(read_json_object(shown.directory / "finetune.json"), events)
    config = pretrained.load_config(shown.directory)
    about = f"A GPT-2 model with {size.num_parameters(config) / 1e6:.2f}M parameters"
    about += f", trained from {run.init_from}" if run.init_from else ""
    about += f" on {run.dataset}" if run.init_from and run.recipe else ""
    if kind == "static":
        _write_page(work, title, about, shown, run)
    else:
        _write_app(work, title, about, shown, config.block_size)
    (work / CARD).write_text(_card(kind, title, about, shown.model), encoding="utf-8")


def _write_page(work: Path, title: str, about: str, shown: Shown, run: model_card.History) -> None:
    """index.html and report.html. Raises UsageError if there is no report."""
    check(shown.run_dir, "static")
    assert shown.run_dir, "checked above"
    report = public_report(shown.run_dir, run.recipe)
    if report is None:
        raise UsageError(f"{shown.run_dir}/{REPORT} cannot be read as UTF-8")
    (work / REPORT).write_text(report, encoding="utf-8")
    samples = model_card.samples(run)
    page = _template().render(
        title=title, about=about, model=shown.model, losses=model_card.losses(run), samples=samples
    )
    (work / PAGE).write_text(page, encoding="utf-8")


def _write_app(work: Path, title: str, about: str, shown: Shown, context: int) -> None:
    """app.py, its settings and its requirements."""
    (work / "app.py").write_bytes(Path(space_app.__file__).read_bytes())
    start = "Once upon a time"
    settings = {"model": shown.model, "revision": shown.commit, "context": context, "start": start}
    write_json(work / "space.json", {"title": title, "about": f"{about}: {shown.model}", **settings})
    versions = read_json_object(shown.directory / VERIFICATION).get("versions", {})
    (work / "requirements.txt").write_text(f"torch\ntransformers=={versions['transformers']}\n", encoding="utf-8")


def _card(kind: Kind, title: str, about: str, model: str | None) -> str:
    """README.md of the Space, which says what kind it is."""
    sdk = {"sdk": "static", "app_file": PAGE} if kind == "static" else {"sdk": "gradio", "sdk_version": GRADIO}
    sdk |= {"app_file": "app.py"} if kind == "gradio" else {}
    linked = {"models": [model]} if model else {}
    front = yaml.safe_dump({"title": title, **sdk, **linked, "tags": ["gpt2", "finetune"]}, sort_keys=False)
    text = model_card.escape_markdown(about) + (f": [{model}](https://huggingface.co/{model})." if model else ".")
    heading = f"# {model_card.escape_markdown(title)}"
    return f"---\n{front}---\n\n{heading}\n\n<!-- finetune:space -->\n{text}\n<!-- /finetune:space -->\n"


def verify(work: Path, kind: Kind, shown: Shown) -> None:
    """Raise Refused unless the pages hold no tag that a text could have brought, or the app continues a prompt with
    the exported model."""
    if kind == "gradio":
        ast.parse((work / "app.py").read_text(encoding="utf-8"))
        settings = read_json_object(work / "space.json") | {"model": str(shown.directory), "revision": None}
        said = space_app.generate(space_app.load(settings), settings, settings["start"], 2, 0.0)
        if not isinstance(said, str):
            raise Refused(f"its app returned {type(said).__name__}, not text")
        return
    for name in (PAGE, REPORT):
        tags = _Tags((work / name).read_text(encoding="utf-8"))
        if tags.active:
            raise Refused(f"{name} holds {', '.join(sorted(tags.active))}, which none of our pages has")


class _Tags(HTMLParser):
    """The tags of a page that load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.active: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Iterable[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        is_harmless = tag == "meta" and "http-equiv" not in given
        if tag in ACTIVE and not is_harmless or any(name.startswith("on") for name in given):
            self.active.add(tag)


def _write_manifest(work: Path) -> None:
    described = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(work.iterdir())
    }
    (work / MANIFEST).write_text(json.dumps({"files": described}, indent=2) + "\n", encoding="utf-8")


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    layout = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = PackageLoader("finetune.publishing", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **layout)
    environment.filters["perplexity"] = model_card.perplexity
    return environment.get_template("space.html.j2")
