"""Steps of the pipeline between those of datatrove: our reader, the words that are compared, and our tokenizer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.tokens.tokenizer import TokenizedFile
from datatrove.utils.text import TextNormConfig, simplify_text
from xxhash import xxh64_intdigest

from finetune.corpus import plan as plans
from finetune.corpus.files import opened
from finetune.corpus.plan import Plan
from finetune.data import chat_template, lossy
from finetune.data.base_tokenizer import SAFE_CUT, without_surrogates
from finetune.data.documents import Chunk, Encoded, cut
from finetune.data.encode import encode_chunks
from finetune.data.sources import Source
from finetune.data.split import OverflowFilter
from finetune.data.tokenizer import Tokenizer

# numbers stay: texts that differ in nothing else are no duplicates
MINHASH = MinhashConfig(norm_config=TextNormConfig(norm_numbers=False))
SIGNS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # of scripts without spaces; each counts as a word
WORD = re.compile(f"[{SIGNS}]|[^\\W{SIGNS}]+")
POWERS = np.array([pow(0x9E3779B97F4A7C15, k, 1 << 64) for k in range(MINHASH.n_grams)], np.uint64)
SLICE = 1 << 14  # shingles whose hashes are held at a time
LANGUAGE = "ace_Arab"  # one whose words datatrove finds without a further package; ours replace them
GROUP_CHARACTERS, GROUP_DOCUMENTS = 1 << 18, 1 << 12


class Read(PipelineStep):
    """The documents of a task's files, as `prepare` reads them. What was read of a file goes to facts/NUMBER.json."""

    type, name = "READER", "finetune"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        plan, tokenizer = plans.load(self.work), plans.load_tokenizer(self.work)
        for number in plan.files_of(rank):
            yield from self._read(plan, number, tokenizer)

    def _read(self, plan: Plan, number: int, tokenizer: Tokenizer) -> Iterator[Document]:
        file, digest, documents = plan.files[number], hashlib.sha256(), 0
        folder = file.title.rpartition("/")[0] or "."
        with opened(file) as path:
            source = Source(folder, [path], options=plan.options, root=path.parent, ends_lines=plan.ends_lines)
            source.template, source.eot = chat_template.of_tokenizer(tokenizer), tokenizer.eot_text
            for chunks in _whole(source.chunks(digest)):
                text = without_surrogates("".join(chunk.text for chunk in chunks))
                documents += 1
                yield Document(text, f"{number}/{documents}", metadata={"chunks": chunks, "split": file.split})
        lines = [taken.describe().replace(str(path.parent), folder) for taken in source.taken]
        facts = {"sha256": digest.hexdigest(), "documents": documents, "lines": lines, "literals": source.literals}
        plans.write(Path(self.work, "facts", f"{number:06d}.json"), json.dumps(facts))


def _whole(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """The chunks of each document that has any text."""
    document: list[Chunk] = []
    for chunk in chunks:
        document.append(chunk)
        if chunk.is_last:
            if any(each.text for each in document):
                yield document
            document = []


class Signature(MinhashDedupSignature):
    """The MinHash of every document. One of fewer words than a shingle has counts as it is, and so does one with a
    prompt: many answers can belong to one passage or system prompt."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, MINHASH, LANGUAGE)
        self.has_prompt = False

    def run(self, data: Iterable[Document] = (), rank: int = 0, world_size: int = 1) -> None:
        super().run(self._noted(data), rank, world_size)

    def _noted(self, data: Iterable[Document]) -> Iterator[Document]:
        for document in data:
            self.has_prompt = not all(chunk.is_target for chunk in document.metadata["chunks"])
            yield document

    def get_shingles(self, text: str) -> np.ndarray:
        words = [] if self.has_prompt else WORD.findall(simplify_text(text, MINHASH.norm_config))
        if len(words) < MINHASH.n_grams:
            return np.array([[xxh64_intdigest(text.encode())]], np.uint64)
        hashes = np.fromiter((xxh64_intdigest(word.encode()) for word in words), np.uint64, len(words))
        windows = np.lib.stride_tricks.sliding_window_view(hashes, MINHASH.n_grams)
        return np.unique((windows * POWERS).sum(axis=1, dtype=np.uint64)).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        parts = [super(Signature, self).get_signature(shingles[i : i + SLICE]) for i in range(0, len(shingles), SLICE)]
        return np.min(np.array(parts, np.uint64), axis=0).tolist()


class KeepFirst(PipelineStep):
    """Of each cluster of duplicates the first document stays, in the order of the source: whatever the tasks were."""

    type, name = "DEDUP", "finetune"

    def __init__(self, clusters: str, removed: str) -> None:
        super().__init__()
        self.clusters, self.removed = clusters, removed

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        seen: set[int] = set()
        for path in sorted(Path(self.clusters).glob("*.clusters")):
            removed = []
            for document, cluster in np.fromfile(path, "<u4").reshape(-1, 2).tolist():
                if cluster in seen:
                    removed.append(document)
                seen.add(cluster)
            plans.write(Path(self.removed, f"{path.stem}.remove"), np.array(removed, "<u4").tobytes())


class Tokenize(PipelineStep):
    """Documents to tokens/SPLIT/TASK.ds, and what was counted to tokens/TASK.json. The hash of a document decides which
    split it goes to, so equal ones stay together."""

    type, name = "TOKENIZER", "finetune"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Iterable[Document] = (), rank: int = 0, world_size: int = 1) -> None:
        plan, tokenizer = plans.load(self.work), plans.load_tokenizer(self.work)
        folder, overflow = Path(self.work, "tokens"), OverflowFilter(plan.overflow, plan.max_tokens)
        sample: list[Chunk] = []
        parts = {split: Part(folder / split, rank, tokenizer) for split in ("train", "val")}
        with contextlib.ExitStack() as stack:
            for part in parts.values():
                stack.callback(part.close)
            for documents in _groups(data):
                sample += [chunk for document in documents for chunk in document.metadata["chunks"]]
                del sample[lossy.FIRST :]
                for split, part in parts.items():
                    chosen = [document for document in documents if _split_of(document, plan) == split]
                    part.add(overflow.filter(split, _encode(chosen, tokenizer)), len(chosen))
        counts = {split: part.counts for split, part in parts.items()}
        texts = [(chunk.text[: lossy.CHARACTERS], chunk.special or chunk.spans is not None) for chunk in sample]
        facts = {**counts, "overflow": overflow.count, "sample": texts}
        plans.write(folder / f"{rank:05d}.json", json.dumps(facts))


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= GROUP_CHARACTERS or len(group) >= GROUP_DOCUMENTS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _split_of(document: Document, plan: Plan) -> str:
    """The split that is given, or the one that the seed and the text decide."""
    if given := document.metadata["split"]:
        return given
    digest = hashlib.blake2b(document.text.encode(), digest_size=8, key=str(plan.seed).encode()).digest()
    return "val" if int.from_bytes(digest, "big") < plan.val_fraction * 2**64 else "train"


def _encode(documents: list[Document], tokenizer: Tokenizer) -> list[Encoded]:
    """The chunks of documents with their ids, long ones cut as `prepare` cuts them."""
    chunks = (chunk for document in documents for chunk in document.metadata["chunks"])
    size, pattern = tokenizer.piece_size(GROUP_CHARACTERS), tokenizer.cut_pattern or SAFE_CUT
    return encode_chunks(list(cut(chunks, size, tokenizer.kind == "char", pattern)), tokenizer, tokenizer.eot)


class Part:
    """The .ds file of a split and a task. It has a .loss only if there are tokens that are not learned."""

    def __init__(self, folder: Path, rank: int, tokenizer: Tokenizer) -> None:
        dtype = tokenizer.dtype.newbyteorder("<")
        name = f"{rank:05d}.ds"
        self.file = TokenizedFile(str(folder), name, save_loss_metadata=True, token_size=dtype.itemsize)
        self.loss, self.dtype = folder / f"{name}.loss", dtype
        self.counts: Counter[str] = Counter(documents=0, characters=0, bytes=0, masked=0)

    def add(self, encoded: list[Encoded], documents: int) -> None:
        self.counts["documents"] += documents
        if not encoded:
            return
        lengths = [len(ids) for _, ids in encoded]
        ends = np.cumsum(lengths)[[chunk.is_last for chunk, _ in encoded]]
        self.file.write_bytes(np.concatenate([ids for _, ids in encoded]).astype(self.dtype).tobytes(), ends.tolist())
        learned = np.repeat(np.array([chunk.is_target for chunk, _ in encoded], np.uint8), lengths)
        self.file.write_loss_bytes(learned.tobytes())
        for chunk, _ in encoded:
            self.counts["characters"] += len(chunk.text)
            self.counts["bytes"] += len(chunk.text.encode("utf-8", "surrogatepass"))
        self.counts["masked"] += int(np.count_nonzero(learned == 0))

    def close(self) -> None:
        self.file.close()
        if not self.counts["masked"]:
            self.loss.unlink()
