"""The stages of a preparation."""

from __future__ import annotations

from pathlib import Path

from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter

from finetune.corpus.executors import Stage
from finetune.corpus.merge import Merge
from finetune.corpus.plan import Plan
from finetune.corpus.steps import MINHASH, KeepFirst, Read, Signature, Tokenize


def stages(plan: Plan, work: Path) -> list[Stage]:
    """Two passes over the text, the first of which finds the duplicates."""
    read, tokenize = Read(str(work)), Tokenize(str(work))
    signatures, pairs, clusters, removed = (str(work / name) for name in ("signatures", "pairs", "clusters", "removed"))
    tokens = Stage("tokens", "tokenizing", [read, tokenize], plan.tasks)
    merge = Stage("merge", "writing the bins", [Merge(str(work))], 1)
    if plan.duplicates == "keep":
        return [tokens, merge]
    tokens.pipeline.insert(1, MinhashDedupFilter(removed, lines_to_buffer=1000))
    find = MinhashDedupBuckets(signatures, pairs, config=MINHASH, lines_to_buffer=1000)
    cluster = MinhashDedupCluster(pairs, clusters, MINHASH, save_cluster_id=True, lines_to_buffer=1000)
    return [
        Stage("signatures", "reading", [read, Signature(signatures)], plan.tasks),
        Stage("pairs", "comparing", [find], MINHASH.num_buckets),
        Stage("clusters", "finding duplicates", [cluster, KeepFirst(clusters, removed)], 1),
        tokens,
        merge,
    ]
