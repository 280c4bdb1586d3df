"""An export as a model repository on the Hub: one commit, compared afterwards; none if nothing has changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from finetune.common.files import MANIFEST, files_in_manifest, read_json_object, sha256_of
from finetune.config.run_directory import LOSS_PLOT
from finetune.data import bpe_files
from finetune.publishing import hub_card
from finetune.publishing.export import CARD, VERIFICATION
from finetune.publishing.repository import Refused, Repository, names, reason, sending

# files of an earlier export, removed from the repository when the next export does not have them
OPTIONAL_FILES = {*bpe_files.FILES, LOSS_PLOT} - {"tokenizer_config.json"}
# a model that a library would take for the one of the repository, its adapters, and the state of its trainer
MODEL = re.compile(
    r"checkpoint-\d+/.*|(pytorch_model|model|adapter_model|tf_model|flax_model|rust_model|consolidated)[^/]*"
    r"\.(bin|safetensors|h5|msgpack|ot|pth)(\.index\.json)?|(adapter_)?config\.json"
    r"|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state[^/]*\.pth|training_args\.bin|trainer_state\.json"
)
# what else is of that model: other formats, files of its tokenizer, its figures
BESIDE_MODEL = re.compile(
    r".*\.(gguf|onnx([._]data)?)|added_tokens\.json|special_tokens_map\.json|spiece\.model|vocab\.txt"
    r"|chat_template\.json|(all|train|eval)_results\.json"
)
WEIGHTS = (".safetensors", ".bin")  # of some model


def push(
    directory: str | Path,
    repository: str,
    private: bool = True,
    again: str = "",
    revision: str | None = None,
    overwrite: bool = False,
) -> str:
    """Make `repository`, or its branch `revision`, hold the files of an export, with the token of the environment or of
    `hf auth login`, and tag them; return the commit. Words of the owner in the card there are taken into the card of
    the export. `overwrite` replaces a model that another program pushed.

    There is one commit at the end, so an interrupted push changes nothing, and the next one sends only missing files.
    Raises Failure with exit code 4, on one line with the command `again`, unless the repository holds these files."""
    what, way_out = f"{repository} was not pushed", f"The export in {directory} is whole; again: {again}"
    target = Repository(repository, branch=revision)
    with sending(what, way_out):
        _push(Path(directory), target, private, overwrite)
    _tag(target, Path(directory))
    return target.info.sha


def _push(directory: Path, target: Repository, private: bool, overwrite: bool) -> None:
    target.open(private)
    earlier = target.manifest() if VERIFICATION in target.files else {}
    sent = {*files_in_manifest(directory), MANIFEST}
    theirs = _files_of_another_program(target, earlier)
    left = (OPTIONAL_FILES & target.files.keys()) - sent if theirs or earlier else set()
    misleading = {name for name in theirs - sent if MODEL.fullmatch(name) or BESIDE_MODEL.fullmatch(name)} | left
    if theirs and not overwrite:
        done = {
            "would be replaced": theirs & sent,
            "would be removed": misleading,
            "would stay": theirs - sent - misleading,
        }
        changes = ", ".join(f"{names(files)} {what}" for what, files in done.items() if files)
        way_out = "--overwrite=true does that, or choose another name"
        raise Refused(f"it holds a model that was not exported by finetune; {changes}: {way_out}")
    hub_card.take_over(target, directory, earlier)
    files = {name: directory / name for name in sorted(sent)}
    stale = sorted((earlier.keys() & target.files.keys() | misleading) - sent)
    if not stale and not target.different(files):
        print(f"{target.name} ({target.visibility}) holds this export already; nothing to push")
    else:
        _announce(target, target.files.keys() & target.different(files), stale, bool(theirs))
        size = sum(path.stat().st_size for path in files.values())
        print(f"pushing {len(files)} files, {size / 1e6:,.1f} MB, to {target.name} ({target.visibility})")
        url = target.commit(files, stale, "Export by finetune")
        print(f"pushed to {url}; all {len(files)} hashes agree")


def _files_of_another_program(target: Repository, earlier: dict[str, dict[str, Any]]) -> set[str]:
    """Files of a model that another program pushed, none if there is no such model. `earlier` is the manifest of an
    export there, over which another program may have pushed since."""
    parts = {name for name in target.files if MODEL.fullmatch(name) or not earlier and name.endswith(WEIGHTS)}
    model = {name for name in parts if not _is_as_exported(target, name, earlier)}
    beside = {name for name in target.files if model and BESIDE_MODEL.fullmatch(name)}
    return model | {name for name in beside if not _is_as_exported(target, name, earlier)}


def _is_as_exported(target: Repository, name: str, earlier: dict[str, dict[str, Any]]) -> bool:
    held, entry = target.files[name], earlier.get(name, {})
    if held.size != entry.get("bytes"):
        return False
    summed = held.lfs["sha256"] if held.lfs else hashlib.sha256(target.read(name) or b"").hexdigest()
    return summed == entry.get("sha256")


def _announce(target: Repository, replaced: set[str], removed: Collection[str], is_theirs: bool) -> None:
    """Say what a push does to files that are there."""
    if replaced:
        print(f"{target.name}: replacing {names(replaced, 20)}")
    if removed:
        print(f"{target.name}: removing {names(removed, 20)}{', of the model that was there' if is_theirs else ''}")
    if is_theirs and CARD in replaced:
        print(f"{target.name}: the words in its {CARD} stay; change those about the model that was there")


def _tag(target: Repository, directory: Path) -> None:
    """Give what the Hub holds a tag of its own, by which this export can be loaded later. It is no part of the push: a
    Hub that gives none is told of."""
    from huggingface_hub import HfApi

    step = read_json_object(directory / "finetune.json").get("step")
    kind = f"step-{step}" if isinstance(step, int) else "export"
    tag = f"{kind}-{sha256_of(directory / MANIFEST)[:8]}"
    try:
        refs = HfApi().list_repo_refs(target.name)
        if tag not in {one.name for one in refs.tags}:
            HfApi().create_tag(target.name, tag=tag, revision=target.info.sha, exist_ok=True)
            print(f"tagged {tag}")
    except (Exception, KeyboardInterrupt) as error:  # each kind of network failure has its own class
        print(f"without the tag {tag}: {reason(error)}")
        if isinstance(error, KeyboardInterrupt):
            raise
