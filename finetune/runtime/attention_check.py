"""What makes sure that isolated documents are isolated, on this device and with its arithmetic, before anything is
learned."""

import torch
from torch.nn import functional as F

from finetune.common.errors import Failure
from finetune.gpt import attention as attentions

# of outputs and gradients around 1 to 3, whose sums over a document are rounded; a document that sees another is off by
# some 0.5
TOLERANCE = {torch.float32: 4e-3, torch.bfloat16: 0.12, torch.float16: 2e-2}


def check_isolation(network, machine, block_size, dropout, say):
    """Choose how documents are isolated: by flex attention where everything is compiled and that is exact here, else by
    a mask. Raises Failure when not even the mask gives what each document gives by itself."""
    if machine.compile and machine.torch_device.type == "cuda" and not dropout:
        try:
            problem = _problem(
                network.config, machine, block_size, torch.compile(attentions.flex_attention, dynamic=False)
            )
        except Exception as error:  # whatever a compiler may raise; the mask needs none
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if problem is None:
            for block in network.h:
                block.attn.flex = True
            return
        say(f"documents are isolated by a mask, because flex attention does not work here ({problem[:200]})")
    if problem := _problem(network.config, machine, block_size, _by_mask):
        raise Failure(f"isolate_documents: attention does not keep documents apart on this device ({problem})", 1)


def _by_mask(q, k, v, starts):
    return attentions.causal_attention(q, k, v, starts)


def _problem(config, machine, T, attention):
    """What is wrong with `attention` over two rows of random documents, compared with plain attention over each; None
    when nothing is."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, config.n_head, T, config.n_embd // config.n_head)
    q, k, v = torch.randn(shape, generator=generator).to(machine.torch_device, machine.dtype).requires_grad_()
    weights = torch.randn(shape[1:], generator=generator).to(machine.torch_device)
    ends = [
        sorted({*torch.randint(1, T, (min(T - 1, 5),), generator=generator).tolist(), T}) if T > 1 else [1]
        for _ in range(2)
    ]
    starts = torch.stack(
        [torch.cat([torch.full((end - begin,), begin) for begin, end in zip([0, *row], row)]) for row in ends]
    ).to(machine.torch_device)
    together = attention(q, k, v, starts).float()
    apart = torch.zeros_like(together)
    for number, row in enumerate(ends):
        for begin, end in zip([0, *row], row):
            alone = [tensor[number : number + 1, :, begin:end].float() for tensor in (q, k, v)]
            apart[number, :, begin:end] = F.scaled_dot_product_attention(*alone, is_causal=True)[0]
    found = [together, *torch.autograd.grad((together * weights).sum(), (q, k, v))]
    wanted = [apart, *torch.autograd.grad((apart * weights).sum(), (q, k, v))]
    off = max((one.float() - other.float()).abs().max().item() for one, other in zip(found, wanted))
    return None if off <= TOLERANCE[machine.dtype] else f"off by {off:.2g}"
