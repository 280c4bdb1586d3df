"""A published directory as a repository on the Hub: one commit, compared afterwards, and none where nothing has
changed."""

import hashlib
import sys
from pathlib import Path

from finetune.common.errors import Failure
from finetune.common.files import MANIFEST, files_in_manifest, read_chunks, sha256_of
from finetune.common.network import SECONDS as HUB_TIMEOUT
from finetune.publishing.export import VERIFICATION

CAME_WITH_AN_EXPORT = {  # removed from the repository when the next export has no such file
    "chat_template.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "loss.png",
}


def push(directory, repository, private=True, again="", say=print):
    """Make `repository` hold the files of a published directory.

    The token is that of the environment or of `hf auth login`. Everything goes up in one commit at the end, so a push
    that is interrupted changes nothing, and the next one sends only what is missing. Raises Failure with exit code 4,
    in one line with the command `again`, when the repository does not hold these files afterwards."""
    try:
        _push(Path(directory), repository, private, say)
    except (Exception, KeyboardInterrupt) as error:  # every way in which a network fails has its own class
        reason = str(error) if isinstance(error, Refused) else _reason(error)
        raise Failure(
            f"{repository} was not pushed: {reason}. The export in {directory} is whole; again: {again}", 4
        ) from error


class Refused(Exception):
    """A push that must not be made, or cannot, in words."""


def _push(directory, repository, private, say):
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    if not sys.stderr.isatty():
        disable_progress_bars()
    hub_logging.set_verbosity_error()
    if not get_token():
        raise Refused("there is no token; run `hf auth login` or set HF_TOKEN")
    api = HfApi()
    there = _look(api, repository)  # also finds out within seconds whether there is a Hub
    if there is None:
        api.create_repo(repository, private=private)
        there = _look(api, repository)
    if there is None:
        raise Refused("the repository was made and cannot be seen")
    if private and not there.private:
        raise Refused("it is public already; --private=false pushes to it, or choose another name")
    names = {file.rfilename for file in there.siblings}
    if VERIFICATION not in names and any(name.endswith((".safetensors", ".bin", "config.json")) for name in names):
        raise Refused("it holds a model that no export of ours put there; choose another name")
    visibility = "private" if there.private else "public"
    files = sorted(
        directory / name for name in [*files_in_manifest(directory), MANIFEST]
    )  # and nothing else that lies there by now
    stale = sorted((CAME_WITH_AN_EXPORT & names) - {path.name for path in files})
    if not stale and not _different(files, there):
        say(f"{repository} ({visibility}) holds this export already; nothing to push")
        return
    size = sum(path.stat().st_size for path in files)
    say(f"pushing {len(files)} files, {size / 1e6:,.1f} MB, to {repository} ({visibility})")
    operations = [CommitOperationAdd(path.name, path) for path in files] + [
        CommitOperationDelete(name) for name in stale
    ]
    commit = api.create_commit(repository, operations, commit_message="Export by finetune", parent_commit=there.sha)
    if different := _different(files, _look(api, repository)):
        raise Refused(f"what the Hub holds now is not what was sent: {', '.join(different)}")
    say(f"pushed to {commit.commit_url}; all {len(files)} hashes agree")


def _look(api, repository):
    """What the Hub knows of a repository, with the hashes of its files; None when there is none that this token can
    see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repository, files_metadata=True, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError:
        return None


def _different(files, there):
    """Names of the files that the Hub does not hold as they are here, by size and by sha256 or git's sha1."""
    held = {file.rfilename: file for file in there.siblings}
    return [path.name for path in files if path.name not in held or not _equal(path, held[path.name])]


def _equal(path, held):
    if held.size != path.stat().st_size:
        return False
    return sha256_of(path) == held.lfs["sha256"] if held.lfs else _git_sha1(path) == held.blob_id


def _git_sha1(path):
    """The name that git gives to the content of a file."""
    summed = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    for chunk in read_chunks(path):
        summed.update(chunk)
    return summed.hexdigest()


def _reason(error):
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    status = next((link.response.status_code for link in chain if getattr(link, "response", None) is not None), None)
    if status == 401:
        return "the Hub does not accept this token; run `hf auth login` or set another HF_TOKEN"
    if status == 403:
        return "this token may not write there; give it that permission or choose another USER/NAME"
    kinds = [type(link).__name__ for link in chain]
    if status is None and any(word in kind for kind in kinds for word in ("Connect", "Timeout", "Network")):
        return f"the Hub cannot be reached ({kinds[0]})"
    words = [
        f"{kind}: {str(link).strip().splitlines()[0].rstrip('.')}" if str(link).strip() else kind
        for kind, link in zip(kinds, chain)
    ]
    return ", from ".join(words[:2])
