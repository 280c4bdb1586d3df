"""What a run does when it has gone wrong: back to the last good state."""

import contextlib

import torch

from finetune.cli import Failure
from finetune.training import checkpoint
from finetune.training.guard import Diverged
from finetune.training.saving import save_state
from finetune.training.start import begin_again, take_up


def roll_back(run, progress, problem):
    """Go back to the last good state with half the learning rate. Raises Failure when that has been done often
    enough."""
    recipe, reached, main = run.recipe, run.iteration, run.machine.accelerator.is_main_process
    progress.say(problem)
    progress.record("diverged", step=reached, problem=problem)
    states = checkpoint.states(recipe.out_dir)
    newest = int(states[0].name.removeprefix("step-")) if states else -1
    if len(set(run.machine.accelerator.gather(torch.tensor([newest], device=run.machine.device)).tolist())) > 1:
        raise Failure(
            f"training diverged: {problem}; to go back all machines must see the states in out_dir {recipe.out_dir}, on"
            " a shared disk",
            3,
        )
    if run.rollbacks >= recipe.max_rollbacks:
        tried = f" after {run.rollbacks} rollbacks" if run.rollbacks else ""
        good = f"the last state is {states[0]}" if states else "no state had been saved yet"
        raise Failure(
            f"training diverged{tried}: {problem}; {good}. A lower learning_rate (now {recipe.learning_rate:g}) is the"
            " first thing to try",
            3,
        )
    run.optimizer.zero_grad(set_to_none=True)
    run.machine.accelerator.wait_for_everyone()
    if len(states) > 1 and run.returned_to is not None and run.returned_to == run.saved_at:
        if main:  # it led straight back to here: it was saved after the harm was done, and before it showed
            checkpoint.forget(recipe.out_dir, run.returned_to)
        run.machine.accelerator.wait_for_everyone()
        states = states[1:]
    if states:
        take_up(run, checkpoint.load_state(recipe.out_dir, progress.say))
    else:
        begin_again(run)
    run.returned_to = run.iteration
    run.rollbacks, run.lr_scale = run.rollbacks + 1, run.lr_scale / 2
    progress.say(
        f"rollback {run.rollbacks} of {recipe.max_rollbacks}: back to step {run.iteration}, learning rates times"
        f" {run.lr_scale:g}"
    )
    progress.record("rollback", step=run.iteration, reached=reached, lr_scale=run.lr_scale, problem=problem)
    if main:
        with contextlib.suppress(
            OSError
        ):  # on a full disk the lines of the failed try stay, before the rollback that tells of it
            progress.rewrite(run)
    with contextlib.suppress(Diverged):  # weights that came as no numbers; the next update finds it
        save_state(
            run, progress, must_succeed=False
        )  # so that a kill does not make it forget how often it has gone back
