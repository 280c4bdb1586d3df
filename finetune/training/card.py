"""The model card: the facts of a run, for whoever finds the model."""

from pathlib import Path


def model_card(run, facts):
    """README.md of a model directory, in the Hub's format."""
    from huggingface_hub import ModelCardData

    recipe, config = run.recipe, run.network.config
    base = (
        run.init_from
        if run.init_from != "scratch" and not Path(run.init_from).expanduser().exists() and not run.init_from.startswith((".", "/", "~"))
        else None
    )
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", base_model=base, tags=["gpt2", "finetune"])
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    tokenizer = run.tokenizer.describe()["name"] if run.tokenizer else "not recorded"
    name = Path(recipe.out_dir).resolve().name
    return f"""---
{data.to_yaml()}
---

# {name}

A GPT-2 of {run.network.num_parameters() / 1e6:.2f}M parameters ({config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide,
{config.block_size} tokens of context), trained from {run.init_from} on {Path(recipe.dataset).name}.

| | |
|---|---|
| validation loss | {facts["val_loss"]:.4f} nats per token, after {facts["step"]} updates |
| tokens | {run.train.num_tokens:,} to train on, {run.val.num_tokens:,} to validate on, {tokenizer} |
| one update | {rows} blocks of {run.train.block_size} tokens |
| optimizer | AdamW, learning rate {recipe.learning_rate:g} to {run.schedule.min_lr:g}, weight decay {recipe.weight_decay:g}, betas {recipe.beta1:g} and {recipe.beta2:g} |

```python
from transformers import pipeline

print(pipeline("text-generation", "{name}/best")("Once upon a time")[0]["generated_text"])
```
"""
