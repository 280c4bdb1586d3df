"""Writing train.bin, val.bin and the files beside them."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from finetune.common.files import CHUNK_BYTES, sync, write_file
from finetune.data.dataset import UINT16
from finetune.data.documents import Encoded


class BinWriter:
    """A bin being written. NAME_mask.bin and NAME_documents.bin appear beside it only if they are needed."""

    def __init__(
        self, path: Path, eot: int | None = None, dtype: np.dtype = UINT16, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self.path, self.eot, self.dtype, self.chunk_bytes = path, eot, dtype.newbyteorder("<"), chunk_bytes
        self.file, self.digest = open(path, "wb"), hashlib.sha256()
        self.mask_file: BinaryIO | None = None
        self.mask_digest = hashlib.sha256()
        self.document_ends = array("Q")
        self.ends_are_hidden = False  # end-of-text stands within documents, or not behind each
        self.tokens = self.characters = self.bytes = self.targets = 0

    def add(self, encoded: list[Encoded]) -> None:
        if self.mask_file is None and not all(chunk.is_target for chunk, _ in encoded):
            self._begin_mask()
        every_id = np.concatenate([ids for _, ids in encoded])
        raw = every_id.astype(self.dtype).tobytes()
        self.file.write(raw)
        self.digest.update(raw)
        documents = ends = 0  # that end here, and those of them with an end-of-text
        for chunk, ids in encoded:
            if self.mask_file:
                self._write_mask(self.mask_file, chunk.is_target, len(ids))
            self.tokens += len(ids)
            self.targets += len(ids) * chunk.is_target
            self.characters += len(chunk.text)
            self.bytes += len(chunk.text.encode("utf-8", "surrogatepass"))
            if chunk.is_last:
                self.document_ends.append(self.tokens)
                ends += bool(len(ids) and ids[-1] == self.eot)
                documents += 1
        is_plain = documents == ends == np.count_nonzero(every_id == self.eot)
        self.ends_are_hidden |= self.eot is not None and not is_plain

    def close(self) -> dict:
        """Close the files and return their entry of meta.json."""
        facts = {
            "tokens": self.tokens,
            "characters": self.characters,
            "bytes": self.bytes,
            "documents": len(self.document_ends),
            "sha256": self.digest.hexdigest(),
        }
        if self.mask_file:
            facts |= {"targets": self.targets, "mask_sha256": self.mask_digest.hexdigest()}
        if self.ends_are_hidden or (self.eot is None and len(self.document_ends) > 1):
            # no end-of-text shows where documents end
            ends = np.frombuffer(self.document_ends, dtype=np.uint64).astype("<u8").tobytes()
            facts["documents_sha256"] = hashlib.sha256(ends).hexdigest()
            write_file(self._beside("documents"), ends)
        for file in filter(None, [self.file, self.mask_file]):
            file.close()
            sync(file.name)
        return facts

    def __enter__(self) -> BinWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.mask_file:
            self.mask_file.close()

    def _beside(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.stem}_{kind}.bin")

    def _begin_mask(self) -> None:
        """Open the mask; all tokens so far were targets."""
        self.mask_file = open(self._beside("mask"), "wb")
        for first in range(0, self.tokens, self.chunk_bytes):
            self._write_mask(self.mask_file, True, min(self.chunk_bytes, self.tokens - first))

    def _write_mask(self, file: BinaryIO, is_target: bool, count: int) -> None:
        mask = bytes([is_target]) * count
        file.write(mask)
        self.mask_digest.update(mask)
