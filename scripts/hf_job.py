# /// script
# requires-python = ">=3.10"
# dependencies = ["finetune-gpt2"]
# ///
"""Finetune on a GPU of Hugging Face Jobs, and push the model to a private repository of yours.

hf jobs uv run --flavor=a10g-small --timeout=4h --secrets=HF_TOKEN scripts/hf_job.py TEXT USER/NAME [--key=value ...]

TEXT is a dataset of the Hub, or a file under a volume of the job. Further flags are those of training.
"""

import sys

from finetune.__main__ import main

WORK, RUN = "data/job", "out-job"


def commands(text: str, repository: str, *flags: str) -> list[list[str]]:
    """The three commands, as on a command line. The recipe is the first flag that is no --key=value, else small."""
    recipe = [] if flags and not flags[0].startswith("-") else ["small"]
    return [
        ["prepare", text, f"--out_dir={WORK}"],
        ["train", *recipe, *flags, f"--dataset={WORK}", f"--out_dir={RUN}"],
        ["export", f"--out_dir={RUN}", "--to=export", f"--push_to_hub={repository}"],
    ]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for argv in commands(*sys.argv[1:]):
        print("+ finetune", *argv, flush=True)
        sys.argv = ["finetune", *argv]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
