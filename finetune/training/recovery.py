"""What a run does when it has gone wrong: back to the last good state."""

import contextlib
import dataclasses

import torch

from finetune.common.errors import Failure, UsageError
from finetune.gpt import GPT, convert, lora
from finetune.runs import checkpoints
from finetune.runtime import fsdp
from finetune.training import monitor
from finetune.training import optimizer as optimizers
from finetune.training.monitor import Diverged
from finetune.training.saving import save_state


def roll_back(run, logger, problem):
    """Go back to the last good state with half the learning rate. Raises Failure when that has been done often
    enough."""
    recipe, reached, main = run.recipe, run.iteration, run.machine.accelerator.is_main_process
    logger.print(problem)
    logger.record("diverged", step=reached, problem=problem)
    states = checkpoints.states(recipe.out_dir)
    newest = int(states[0].name.removeprefix("step-")) if states else -1
    if len(set(run.machine.accelerator.gather(torch.tensor([newest], device=run.machine.torch_device)).tolist())) > 1:
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
            checkpoints.delete_state(recipe.out_dir, run.returned_to)
        run.machine.accelerator.wait_for_everyone()
        states = states[1:]
    if states:
        restore_state(run, checkpoints.load_state(recipe.out_dir, logger.print))
    else:
        reset_to_initial(run)
    run.returned_to = run.iteration
    run.rollbacks, run.lr_scale = run.rollbacks + 1, run.lr_scale / 2
    logger.print(
        f"rollback {run.rollbacks} of {recipe.max_rollbacks}: back to step {run.iteration}, learning rates times"
        f" {run.lr_scale:g}"
    )
    logger.record("rollback", step=run.iteration, reached=reached, lr_scale=run.lr_scale, problem=problem)
    if main:
        with contextlib.suppress(
            OSError
        ):  # on a full disk the lines of the failed try stay, before the rollback that tells of it
            logger.rewrite(run)
    with contextlib.suppress(Diverged):  # weights that came as no numbers; the next update finds it
        save_state(run, logger, must_succeed=False)  # so that a kill does not make it forget how often it has gone back


def restore_state(run, saved):
    """Put a run where a saved state (`checkpoint.load_state`) is."""
    tensors, moments, state = saved
    if run.recipe.lora_rank:
        lora.load(run.network, tensors)
    else:
        fsdp.load(run.network, convert.with_padding(tensors, run.network.config))
    optimizers.fill_optimizer(run.optimizer, run.names, moments, state["updates"])
    run.iteration, run.evaluations, run.watch = (
        state["iteration"],
        state["evaluations"],
        monitor.LossMonitor(**state["watch"]),
    )
    run.saved_at, run.save_due = state["iteration"], False
    if run.scaler and state["scaler"]:
        run.scaler.load_state_dict(state["scaler"])


def resume(run, saved, say):
    restore_state(run, saved)
    state = saved[2]
    run.init_from, run.lr_scale, run.rollbacks = state["init_from"], state["lr_scale"], state["rollbacks"]
    # as it was found then: with dropout another cut would be another run
    if run.recipe.auto_batch_size and has_found_batch_size(saved, run.machine):
        sizes = {name: state["recipe"][name] for name in ("batch_size", "gradient_accumulation_steps")}
        run.recipe = dataclasses.replace(run.recipe, auto_batch_size=False, **sizes)
    if run.recipe.eval_iters == state["recipe"]["eval_iters"]:
        run.eval_rows = state["eval_rows"]  # batch_size may be another now
    if run.recipe.learning_rate != state["recipe"]["learning_rate"]:
        run.lr_scale = 1.0
    if run.lr_scale != 1.0:
        say(
            f"learning rates are times {run.lr_scale:g} after {run.rollbacks} rollbacks; another learning_rate would"
            " start afresh"
        )
    run.best = checkpoints.read_best(run.recipe.out_dir)
    if not run.best:
        say(f"{run.recipe.out_dir}/best: there is none, or it is damaged; the next evaluation writes it")


def has_found_batch_size(saved, machine):
    """Whether a saved state holds micro-batches that so many processes can share."""
    return (
        saved is not None and saved[2]["recipe"]["gradient_accumulation_steps"] % machine.accelerator.num_processes == 0
    )


def reset_to_initial(run):
    """Put a run back to its start, before the first state was saved. What has happened to it so far is kept."""
    fresh = make_model(
        run.recipe, dataclasses.replace(run.network.config), run.train.block_size, None, lambda line: None, {}
    )
    fsdp.load(run.network, fresh.state_dict())
    optimizers.fill_optimizer(run.optimizer, run.names)
    run.iteration, run.saved_at, run.save_due, run.evaluations, run.watch = 0, None, False, [], monitor.LossMonitor()


def check_resumed(recipe, identity, state, say):
    """Refuse to go on as another run; say what else has changed."""
    if state.get("format") != checkpoints.STATE_FORMAT:
        raise UsageError(
            f"{recipe.out_dir}: its state has format {state.get('format')!r}, not {checkpoints.STATE_FORMAT}"
        )
    newer = {
        "isolate_documents": False,
        "dataset_weights": None,
        "lora_rank": 0,
    }  # of runs from before there were these
    before = {**newer, **state["identity"], **{name: state["config"][name] for name in ("n_layer", "n_head", "n_embd")}}
    now = {
        **identity,
        **{
            name: getattr(recipe, name) for name in ("n_layer", "n_head", "n_embd") if getattr(recipe, name) is not None
        },
    }
    changed = [
        f"  {name}: {before.get(name)} in the run, {value} now"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if changed:
        raise UsageError(
            "\n".join(
                [
                    (
                        f"{recipe.out_dir}: cannot be resumed as another run; give these back or start with another"
                        " init_from:"
                    ),
                    *changed,
                ]
            )
        )
    for field in dataclasses.fields(recipe):
        old, new = state["recipe"].get(field.name, field.default), getattr(recipe, field.name)
        if field.metadata["resume"] == "schedule" and old != new:
            say(f"resuming with {field.name} {old} -> {new} from iteration {state['iteration']}")


def make_model(recipe, config, block_size, saved, say, identity):
    """The network that is trained. With adapters, `identity` is told what they are trained over, which no state
    holds."""
    network = load_weights(recipe, config, block_size, saved, say)
    if recipe.lora_rank:
        identity["weights under the adapters (sha256)"] = lora.fingerprint(network)
        if saved:
            check_resumed(recipe, identity, saved[2], lambda line: None)
        lora.add_adapters(network, recipe)
    return network


def load_weights(recipe, config, block_size, saved, say):
    if saved:
        say(f"resuming {recipe.out_dir} at iteration {saved[2]['iteration']}")
        if not recipe.lora_rank:
            return GPT.from_state(config, saved[0], dropout=recipe.dropout)
        try:
            return GPT.from_pretrained(saved[2]["init_from"], block_size, recipe.dropout)
        except UsageError as error:
            raise UsageError(
                f"{recipe.out_dir}: holds adapters and not the weights they were trained over: {error}"
            ) from None
    if recipe.init_from == "scratch":
        say("initializing a new model from scratch")
        network = GPT.from_scratch(config, recipe.seed)
        network.set_dropout(recipe.dropout)
        return network
    say(f"initializing from {recipe.init_from}")
    return GPT.from_pretrained(recipe.init_from, block_size, recipe.dropout)
