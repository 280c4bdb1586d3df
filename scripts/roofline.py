"""What a perfect update would take on this processor: its products at the best rate of their shapes, and its memory
traffic at the rate of a copy."""

import time

ADAMW_BYTES = 28  # per parameter: weight, gradient and two moments are read, all but the gradient are written
CAST_BYTES = 12  # per parameter: float32 weight to bfloat16, and its gradient back; none where all is float32


def of_an_update(size, tokens, tries=7):
    """Figures of an update of `tokens` tokens of a network of `size` (layers, heads, width), in the dtype that finetune
    computes in here."""
    import torch

    from finetune.gpt.model import GPTConfig
    from finetune.gpt.size import num_parameters
    from finetune.runtime.device import best_dtype, keep_heap

    keep_heap()
    dtype = best_dtype("auto", torch.device("cpu"))
    n_layer, n_head, n_embd = size
    config = GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    parameters, vocabulary = num_parameters(config), config.padded_vocab_size
    # name, out, in, how often
    layers = [
        ("c_attn", 3 * n_embd, n_embd, n_layer),
        ("attn.c_proj", n_embd, n_embd, n_layer),
        ("c_fc", 4 * n_embd, n_embd, n_layer),
        ("mlp.c_proj", n_embd, 4 * n_embd, n_layer),
        ("head", vocabulary, n_embd, 1),
    ]
    products = []
    for name, out, into, times in layers:
        x, weight = (torch.randn(shape, dtype=dtype) for shape in ((tokens, into), (out, into)))
        y = torch.randn(tokens, out, dtype=dtype)
        for kind, product in (
            ("forward", lambda x=x, weight=weight: x @ weight.T),
            ("gradient of the input", lambda y=y, weight=weight: y @ weight),
            ("gradient of the weight", lambda x=x, y=y: y.T @ x),
        ):
            seconds = best(product, tries)
            flop = 2 * tokens * out * into
            products.append({"product": f"{name}, {kind}", "seconds": seconds * times, "rate": flop / seconds})
    flop = sum(p["seconds"] * p["rate"] for p in products)
    peak = max(p["rate"] for p in products)
    big = torch.zeros(1 << 27)
    copied = torch.empty_like(big)
    bandwidth = 2 * big.numel() * 4 / best(lambda: copied.copy_(big), tries)
    traffic = parameters * (ADAMW_BYTES + CAST_BYTES * (dtype == torch.bfloat16)) / bandwidth
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "products": products,
        "products_seconds": sum(p["seconds"] for p in products),
        "peak": peak,
        "bandwidth": bandwidth,
        "traffic_seconds": traffic,
        "perfect_seconds": flop / peak + traffic,
    }


def best(work, tries):
    """The least seconds of several tries."""
    work()
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
