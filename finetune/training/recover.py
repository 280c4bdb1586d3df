"""What a run does when it goes wrong: back to the last good state, or on with less memory."""

import contextlib

from finetune.cli import Failure
from finetune.training import checkpoint, guard
from finetune.training.saving import save_state
from finetune.training.start import begin_again, take_up


def roll_back(run, progress, problem):
    """Go back to the last good state with half the learning rate. Raises Failure when that has been done often enough."""
    recipe, reached, main = run.recipe, run.iteration, run.machine.accelerator.is_main_process
    progress.say(problem)
    progress.record("diverged", step=reached, problem=problem)
    states = checkpoint.states(recipe.out_dir)
    if run.rollbacks >= recipe.max_rollbacks:
        tried = f" after {run.rollbacks} rollbacks" if run.rollbacks else ""
        good = f"the last state is {states[0]}" if states else "no state had been saved yet"
        raise Failure(
            f"training diverged{tried}: {problem}; {good}. A lower learning_rate (now {recipe.learning_rate:g}) is the first thing to try", 3
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
    progress.say(f"rollback {run.rollbacks} of {recipe.max_rollbacks}: back to step {run.iteration}, learning rates times {run.lr_scale:g}")
    progress.record("rollback", step=run.iteration, reached=reached, lr_scale=run.lr_scale, problem=problem)
    if main:
        with contextlib.suppress(OSError):  # on a full disk the lines of the failed try stay, before the rollback that tells of it
            progress.rewrite(run)
    save_state(run, progress, must_succeed=False)  # so that a kill does not make it forget how often it has gone back


def shrink(run, progress, error):
    """Answer an error in an update: less memory for the next try when memory was the trouble, else raise it again."""
    if not guard.is_out_of_memory(error):
        raise error
    if run.machine.accelerator.num_processes > 1:  # the others wait for gradients that this one cannot bring any more
        advice = "halve it, double gradient_accumulation_steps and, once a state was saved, go on with --init_from=resume: it is the same run"
        raise Failure(f"out of memory at iter {run.iteration} with batch_size {run.recipe.batch_size}; {advice}", 1, alone=True) from error
    use_less_memory(run, progress)


def use_less_memory(run, progress):
    """Make the micro-batch smaller, on every process alike, and say so."""
    done = guard.use_less_memory(run)
    progress.say(f"out of memory at iter {run.iteration}: {done}")
    progress.record(
        "out_of_memory",
        step=run.iteration,
        done=done,
        batch_size=run.recipe.batch_size,
        gradient_accumulation_steps=run.recipe.gradient_accumulation_steps,
    )
