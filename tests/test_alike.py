"""Each process reads its own command line, environment and files. One that was given something else is told."""

import dataclasses
import os
import shutil
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import write_bins
from ports import free_port
from test_trust import command

from finetune.training import trainer

ROOT = Path(__file__).parents[1]
PLAIN = {"gradient_accumulation_steps": 2, "max_iters": 4}


def ranks(*recipes, **variables):
    """(exit codes, standard error) of a process for each recipe, without a launcher."""
    size = str(len(recipes))
    group = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": size}
    group |= {"PYTHONPATH": str(ROOT), "LOCAL_WORLD_SIZE": size, **variables}
    processes = []
    for rank, recipe in enumerate(recipes):
        program, *argv = command(recipe)
        environment = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(forked.Process(program, *argv, env=environment))
    told = [process.communicate(60)[1] for process in processes]
    return [process.returncode for process in processes], "".join(told)


@pytest.mark.parametrize("name, value", [("learning_rate", 0.5), ("num_samples", 3), ("eval_interval", 2)])
def test_another_value_of_a_key_is_named(tiny, name, value):
    recipe = tiny(**PLAIN)
    codes, told = ranks(recipe, dataclasses.replace(recipe, **{name: value}))
    assert codes == [2, 2] and told.count("\n") == 1, told
    assert told.startswith(f"{name}: {getattr(recipe, name)} on rank 0 (") and f", {value} on rank 1 (" in told


@pytest.mark.heavy
def test_other_data_are_named_and_a_copy_is_the_same(tiny):
    ids = np.arange(400) % 9
    write_bins(Path("one"), ids, ids[:90])
    shutil.copytree("one", "copy")
    write_bins(Path("other"), ids[::-1], ids[:90])
    recipe = tiny(**PLAIN, dataset="one")
    codes, told = ranks(recipe, dataclasses.replace(recipe, dataset="other"))
    assert codes == [2, 2] and told.startswith("train.bin: ") and "the same prepared directory" in told, told
    codes, told = ranks(recipe, dataclasses.replace(recipe, dataset="copy"))
    assert codes == [0, 0], told


@pytest.mark.heavy
def test_another_state_of_the_same_step_is_noticed(tiny):
    recipe = tiny(**PLAIN)
    trainer.train(recipe)
    trainer.train(dataclasses.replace(recipe, out_dir="other", learning_rate=1e-3))
    again = dataclasses.replace(recipe, init_from="resume", max_iters=5)
    shape = dict.fromkeys(("n_layer", "n_head", "n_embd"))
    again = dataclasses.replace(again, **shape)
    codes, told = ranks(again, dataclasses.replace(again, out_dir="other"))
    assert codes == [2, 2] and "not all machines see a state in last/, and the same" in told, told
    shutil.rmtree("other")
    shutil.copytree("out", "other")
    codes, told = ranks(again, dataclasses.replace(again, out_dir="other"))
    assert codes == [0, 0], told
