"""finetune.train, which notes what each process reads in rank-N.jsonl. Real launchers start it: -m launched --key=value
..."""

import json
import os

from finetune import train
from finetune.config.cli import run


def main(argv):
    from finetune.data.batches import Blocks
    from finetune.training import step, validation

    batch, backward, evaluate, doing = Blocks.batch, step._backward, validation.split_loss, []

    def note(**facts):
        with open(f"rank-{os.environ.get('RANK', 0)}.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\n")

    def noted(blocks, rows, device="cpu"):
        if doing:
            note(what=doing[-1], rows=[int(row) for row in rows])
        return batch(blocks, rows, device)

    def within(name, function, *args):
        doing.append(name)
        try:
            return function(*args)
        finally:
            doing.pop()

    Blocks.batch = noted
    step._backward = lambda run, iteration: within(f"update {iteration}", backward, run, iteration)
    validation.split_loss = lambda run, blocks, rows: within(
        f"{'val' if blocks is run.val else 'train'} loss {run.iteration}", evaluate, run, blocks, rows
    )
    note(pid=os.getpid())
    return train.main(argv)


if __name__ == "__main__":
    run(main)
