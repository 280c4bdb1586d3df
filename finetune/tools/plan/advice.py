"""The guide's tables as rules, with the corrections that are known: what stands out in a plan, each in a line with its
numbers."""

import math

from finetune.common.formatting import duration
from finetune.tools.doctor import quality

PASSES = 5  # over a small text within which a pretrained model is at its best
PASSES_FROM_SCRATCH = (
    40  # after which reading the same again teaches nothing more (Muennighoff et al. 2023, arXiv 2305.16264)
)
TOKENS_OF_UPDATE = (8 << 10, 64 << 10)  # that keep training stable, says the guide
# the guide's rates for pretrained weights: below so many tokens, from, to
RATES = [(1_000_000, 3e-5, 5e-5), (10_000_000, 3e-5, 1e-4), (math.inf, 1e-5, 3e-5)]
# peak rates from scratch by width: GPT-3's table (Brown et al. 2020), below it nanoGPT's for its small networks
RATES_FROM_SCRATCH = [(512, 1e-3), (896, 6e-4), (1152, 3e-4), (1408, 2.5e-4), (math.inf, 2e-4)]
RATES_OF_ADAPTERS = (1e-4, 5e-4)  # around recipe.LORA_RATE
MODELS = ("gpt2", "gpt2-medium", "gpt2-large")  # of the sizes of corpora in doctor.SIZES, which are the guide's
FEW_UPDATES = 10
FEW_VAL_TOKENS = 10_000
LONG = 3 * 24 * 3600  # seconds


def advice(plan):
    """Lines about what will not turn out as hoped, the weightiest first."""
    return [line for rule in (_passes, _time, _rate, _size, _update, _evaluation, _data) for line in rule(plan)]


def size_for(tokens):
    """`(init_from, its recipe)` that the guide takes for so many tokens to train on."""
    return next((model, recipe) for model, (limit, _, recipe) in zip(MODELS, quality.SIZES) if tokens < limit)


def rates_for(plan):
    """`(from, to)`: the learning rates for this much data, or for this width from scratch."""
    if plan.recipe.lora_rank:
        return RATES_OF_ADAPTERS
    if plan.pretrained:
        return next((low, high) for limit, low, high in RATES if plan.data.tokens["train"] < limit)
    rate = next(rate for limit, rate in RATES_FROM_SCRATCH if plan.config.n_embd < limit)
    return rate / 3, rate * 3


def sensible_passes(plan):
    return PASSES if plan.pretrained else PASSES_FROM_SCRATCH


def _passes(plan):
    length, tokens, most = plan.schedule.length, plan.data.tokens["train"], sensible_passes(plan)
    if plan.passes > 2 * most:
        within = math.ceil(most * plan.data.rows["train"] / plan.rows)
        line = (
            f"{length:,} iterations are {plan.passes:,.0f} passes over {tokens:,} tokens; best validation is expected"
            f" within the first {most} passes"
        )
        line += f", by iteration {within:,}: --epochs={most}"
        if plan.recipe.patience:
            line += (
                f" (patience={plan.recipe.patience} ends it {plan.recipe.patience * plan.schedule.eval_interval:,}"
                " iterations after the best)"
            )
        yield line
    elif length and plan.passes < 0.95 and length == plan.recipe.max_iters:
        whole = math.ceil(plan.data.rows["train"] / plan.rows)
        yield f"{length:,} iterations read {plan.passes:.0%} of {tokens:,} tokens; --max_iters={whole} reads them once"


def _time(plan):
    if plan.timing and (seconds := sum(plan.seconds().values())) > LONG:
        yield (
            f"{duration(seconds)} are {seconds / 86400:,.1f} days; a smaller model, fewer epochs or another device"
            " would shorten that"
        )
    if plan.device == "cpu" and plan.config.n_layer * plan.config.n_embd**2 > 12 * 768**2:
        yield "on a CPU the guide takes gpt2, the smallest, and nothing larger"


def _rate(plan):
    low, high = rates_for(plan)
    rate, tokens = plan.recipe.learning_rate, plan.data.tokens["train"]
    if not low * 0.999 <= rate <= high * 1.001:
        what = (
            f"pretrained weights and {tokens:,} tokens"
            if plan.pretrained
            else f"a network {plan.config.n_embd} wide from scratch"
        )
        what = "LoRA" if plan.recipe.lora_rank else what
        why = (
            "higher ones forget what the model knew"
            if rate > high and plan.pretrained
            else "higher ones diverge"
            if rate > high
            else "lower ones hardly move"
        )
        yield f"learning_rate {rate:g}: for {what} {low:.2g} to {high:.2g} is usual; {why}"


def _size(plan):
    wanted, recipe = size_for(plan.data.tokens["train"])
    given = plan.recipe.init_from
    if given in (*MODELS, "gpt2-xl") and [*MODELS, "gpt2-xl"].index(given) > MODELS.index(wanted) + (
        wanted == "gpt2-large"
    ):
        yield (
            f"{given} for {plan.data.tokens['train']:,} tokens: the guide takes {wanted} for that ({recipe}), and a"
            " larger model overfits sooner"
        )


def _update(plan):
    low, high = TOKENS_OF_UPDATE
    if 0 < plan.schedule.length < FEW_UPDATES:
        yield (
            f"{plan.schedule.length} iterations in all leave the optimizer few steps; a smaller"
            " gradient_accumulation_steps makes more of the same passes"
        )
    if plan.pretrained and not low <= plan.tokens <= high:
        yield (
            f"{plan.tokens:,} tokens an iteration: the guide keeps to {low:,} to {high:,}, where its learning rates are"
            " right"
        )


def _evaluation(plan):
    if plan.data.tokens["val"] < FEW_VAL_TOKENS:
        yield (
            f"{plan.data.tokens['val']:,} tokens validate: differences of a few hundredths of a nat will be chance; a"
            " larger val_fraction tells more"
        )
    if not plan.timing:
        return
    seconds = plan.seconds()
    if seconds["evaluations"] > max(60, seconds["updates"]):
        yield (
            f"{plan.evaluations:,} evaluations take {duration(seconds['evaluations'])}, the {plan.remaining:,} updates"
            f" {duration(seconds['updates'])}; a larger eval_interval (now {plan.schedule.eval_interval:,}) or"
            " eval_iters makes that less"
        )


def _data(plan):
    if plan.data.tokens["train"] < quality.MIN_TOKENS and plan.data.tokenizer != "char":
        tokens = f"{plan.data.tokens['train']:,} tokens are few"
        yield f"{tokens}: below {quality.MIN_TOKENS:,} the guide expects overfitting"
