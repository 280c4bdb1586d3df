"""What a model answers to the prompts of instruction data, and what it writes by itself."""

import itertools

import numpy as np
import torch

from finetune.gpt.generate import generate

BATCH_SIZE = 16  # prompts of equal length that are answered together
FIRST_STEP = 32  # tokens after which it is first asked whether all have ended


def examples(text, spans):
    """[(prompt, reference)] of instruction data, int64 ids: the tokens before the first target of a document, and the
    targets that follow. Documents (D, 2) without either are left out."""
    found = []
    for start, end in spans:
        ids, mask = np.asarray(text.ids[start:end], dtype=np.int64), np.asarray(text.mask[start:end]) == 1
        if mask.any() and (first := int(mask.argmax())) > 0:
            length = int((~mask[first:]).argmax()) or len(ids) - first
            found.append((ids[:first], ids[first : first + length]))
    return found


def complete(machine, model, prompts, eot, batch_size=None, title="answering", *, max_new_tokens, seed, **drawing):
    """The new ids of each prompt, int64 arrays without the end-of-text that ends them, the same on every process.

    `drawing` is temperature, top_k and top_p of `generate`. Prompts of equal length are answered together; which these
    are, and so what a seed draws, depends on the batch size but not on the number of processes."""
    from accelerate.utils import gather_object
    from tqdm import tqdm

    accelerator = machine.accelerator
    batches, by_length = [], sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for _, alike in itertools.groupby(by_length, key=lambda number: len(prompts[number])):
        group, size = list(alike), batch_size or BATCH_SIZE
        while group:
            batches.append(group[:size])
            group = group[size:]
    mine, answers = range(accelerator.process_index, len(batches), accelerator.num_processes), []
    model.eval()
    for number in tqdm(
        mine, desc=title, unit="batch", disable=None if accelerator.is_main_process else True, leave=False
    ):
        idx = torch.from_numpy(np.stack([prompts[prompt] for prompt in batches[number]])).to(machine.torch_device)
        generator = torch.Generator(machine.torch_device).manual_seed((seed + number) % 2**63)
        out = _continued(model, idx, max_new_tokens, eot, generator=generator, **drawing)
        answers += [(prompt, truncate_at_eot(ids, eot)) for prompt, ids in zip(batches[number], out.cpu().numpy())]
    if accelerator.num_processes > 1:
        answers = gather_object(answers)
    return [ids for _, ids in sorted(answers, key=lambda answer: answer[0])]


def truncate_at_eot(ids, eot):
    """The ids before the first end-of-text."""
    ends = np.flatnonzero(ids == eot) if eot is not None else []
    return ids[: ends[0]] if len(ends) else ids


def _continued(model, idx, max_new_tokens, eot, **drawing):
    """The new ids (B, up to max_new_tokens) after `idx`, until all rows have an end-of-text. It is asked for after
    longer and longer steps, because each begins with all that is there."""
    length, step = idx.size(1), FIRST_STEP
    while (left := length + max_new_tokens - idx.size(1)) > 0:
        idx = generate(model, idx, min(step, left), **drawing)
        if eot is not None and (idx[:, length:] == eot).any(1).all():
            break
        step *= 2
    return idx[:, length:]
