"""finetune.train, which notes what each process reads in rank-N.jsonl. Real launchers start it: -m launched --key=value
..."""

import functools
import json
import os
import sys
from pathlib import Path

from finetune.config.cli import run
from finetune.train import main as train_main


def main(argv):
    from finetune.data.batches import Blocks
    from finetune.training import trainer, validation
    from finetune.training.state import Hooks

    batch, evaluate, validate, doing = Blocks.batch, validation.split_loss, trainer.validate, []

    def note(**facts):
        with open(f"rank-{os.environ.get('RANK', 0)}.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\n")

    def noted(blocks, rows, device="cpu"):
        if doing:
            note(what=doing[-1], rows=[int(row) for row in rows])
        return batch(blocks, rows, device)

    def validated(setup, state, logger):
        def evaluated(device, model, blocks, rows, *others):
            doing.append(f"{'val' if blocks is setup.val else 'train'} loss {state.step}")
            loss = evaluate(device, model, blocks, rows, *others)
            doing.pop()
            return loss

        validation.split_loss = evaluated
        validate(setup, state, logger)

    Blocks.batch, trainer.validate = noted, validated
    updates = Hooks(lambda setup, state: doing.append(f"update {state.step}"), lambda setup, state: doing.pop())
    trainer.train = functools.partial(trainer.train, hooks=updates)
    note(pid=os.getpid())
    # a file is written under another name first
    sys.addaudithook(lambda event, args: event == "os.rename" and note(renamed=Path(os.fsdecode(args[1])).name))
    return train_main(argv)


if __name__ == "__main__":
    run(main)
