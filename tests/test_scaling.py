"""What docs/scaling.md and docs/clusters.md say can be launched can be, as far as one machine shows it, and the tables
are counted by the code."""

import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.gpt import GPT, GPTConfig

ROOT = Path(__file__).parents[1]
TEXT, CLUSTERS = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("scaling.md", "clusters.md"))
BLOCKS = re.findall(r"```\w*\n(.*?)```", TEXT + CLUSTERS, re.S)
SHELL = re.findall(r"```sh\n(.*?)```", TEXT + CLUSTERS, re.S) + [
    block for block in BLOCKS if block.startswith("#!/bin/bash")
]
(MANIFESTS,) = (list(yaml.safe_load_all(block)) for block in BLOCKS if block.startswith("apiVersion"))


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import scaling

    return scaling


def test_the_tables_are_those_of_the_code(scaling):
    assert scaling.page(TEXT) == TEXT, "run python scripts/scaling.py"


def pod():
    (job,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "Job")
    return job["spec"]["template"]["spec"]


def scripts():
    return [*SHELL, pod()["containers"][0]["args"][0]]


def test_the_shell_has_no_mistakes_of_syntax():
    assert len(scripts()) >= 4
    for script in scripts():
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_every_launch_is_understood_by_accelerate_and_by_us(monkeypatch):
    from accelerate.commands.launch import launch_command_parser

    monkeypatch.chdir(ROOT)
    values = {"SLURM_NNODES": "2", "PROCESSES": "16", "SLURM_NODEID": "1", "JOB_COMPLETION_INDEX": "1", "MAIN": "host"}
    found = 0
    for script in scripts():
        for command in re.findall(r"accelerate (launch .*?)(?:'|\n|$)", script.replace("\\\n", " ")):
            words = shlex.split(re.sub(r"\$(\w+)", lambda name: values[name[1]], command))
            args = launch_command_parser().parse_args(words[1:])
            assert Path(args.config_file).is_file() and args.module and args.training_script == "finetune.train"
            recipe, _ = parse(Recipe, args.training_script_args, "")
            assert recipe.gradient_accumulation_steps % args.num_processes == 0
            found += 1
    assert found == 3


def test_a_job_that_was_killed_begins_again_or_goes_on_by_the_same_command():
    assert sum("--out_dir=out-mine --init_from=auto" in script for script in scripts()) == 2


def test_the_manifest_is_of_one_piece():
    (service,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "Service")
    (job,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "Job")
    (container,) = pod()["containers"]
    assert pod()["subdomain"] == service["metadata"]["name"] and service["spec"]["selector"] == {
        "job-name": job["metadata"]["name"]
    }
    assert f"--main_process_ip={job['metadata']['name']}-0.{pod()['subdomain']} " in container["args"][0]
    machines = job["spec"]["completions"]
    assert machines == job["spec"]["parallelism"] and f"--num_machines={machines} " in container["args"][0]
    assert f"--num_processes={machines * container['resources']['limits']['nvidia.com/gpu']} " in container["args"][0]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}


def test_data_parallelism_exchanges_four_bytes_a_parameter_once_an_update(scaling):
    """Counted where DDP hands its buckets over, against the formula of the table without its ring."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        config = GPTConfig(block_size=8, vocab_size=11, n_layer=3, n_head=2, n_embd=8)
        model, exchanged = torch.nn.parallel.DistributedDataParallel(GPT.from_scratch(config, 0)), []

        def hook(state, bucket):
            exchanged.append(bucket.buffer().nbytes)
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, hook)
        idx = torch.zeros(1, 8, dtype=torch.int64)
        for step in range(3):
            if step < 2:
                with model.no_sync():
                    model(idx, idx)[0].backward()
            else:
                model(idx, idx)[0].backward()
    finally:
        torch.distributed.destroy_process_group()
    ring = scaling.sent(config, "DDP", 4, 3)
    assert sum(exchanged) == 4 * sum(parameter.numel() for parameter in model.parameters()) == ring / (2 * 3 / 4)
