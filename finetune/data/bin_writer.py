"""Writing train.bin, val.bin and their masks."""

import hashlib
import os
from array import array

import numpy as np

from finetune.data.dataset import CHUNK_BYTES


class BinWriter:
    """A bin being written, what lies beside it when that is needed, and what meta.json will say of them."""

    def __init__(self, path, eot=None):
        self.path, self.eot, self.file, self.digest = path, eot, open(path, "wb"), hashlib.sha256()
        self.mask_file, self.mask_digest = None, hashlib.sha256()
        self.ends, self.stops = array("Q"), False  # of documents; whether an end-of-text stands within one
        self.tokens = self.characters = self.bytes = self.targets = 0

    def add(self, pieces, ids):
        """Append some Pieces and the ids of each."""
        if self.mask_file is None and not all(piece.target for piece in pieces):
            self._begin_mask()
        raw = np.ascontiguousarray(np.concatenate(ids), dtype="<u2").tobytes()
        self.file.write(raw)
        self.digest.update(raw)
        for piece, part in zip(pieces, ids):
            if self.mask_file:
                self._write_mask(np.full(len(part), piece.target, dtype=np.uint8))
            self.tokens += len(part)
            self.targets += len(part) * piece.target
            self.characters += len(piece.text)
            self.bytes += len(piece.text.encode("utf-8", "surrogatepass"))
            self.stops |= piece.stops
            if piece.ends:
                self.ends.append(self.tokens)

    def close(self):
        """Close the files and return their entry of meta.json."""
        facts = {"tokens": self.tokens, "characters": self.characters, "bytes": self.bytes, "documents": len(self.ends)}
        facts["sha256"] = self.digest.hexdigest()
        if self.mask_file:
            facts |= {"targets": self.targets, "mask_sha256": self.mask_digest.hexdigest()}
        files = [self.file, self.mask_file]
        if self.stops or (self.eot is None and len(self.ends) > 1):  # no end-of-text says where they end
            ends = np.frombuffer(self.ends, dtype=np.uint64).astype("<u8").tobytes()
            facts["documents_sha256"] = hashlib.sha256(ends).hexdigest()
            files.append(open(self._beside("documents"), "wb"))
            files[-1].write(ends)
        for file in files:
            if file:
                file.flush()
                os.fsync(file.fileno())
                file.close()
        return facts

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in (self.file, self.mask_file):
            if file:
                file.close()

    def _beside(self, kind):
        return self.path.with_name(f"{self.path.stem}_{kind}.bin")

    def _begin_mask(self):
        self.mask_file = open(self._beside("mask"), "wb")
        for first in range(0, self.tokens, CHUNK_BYTES):
            self._write_mask(np.ones(min(CHUNK_BYTES, self.tokens - first), dtype=np.uint8))

    def _write_mask(self, mask):
        self.mask_file.write(mask.tobytes())
        self.mask_digest.update(mask.tobytes())
