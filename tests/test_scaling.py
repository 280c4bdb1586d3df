"""What docs/scaling.md and docs/clusters.md say can be launched can be, as far as one machine shows it, and the tables
are counted by the code."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from ports import free_port

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
    assert "not measured" in scaling.measured() or scaling.measured() in scaling.PAGES[1].read_text(encoding="utf-8")
    for path in scaling.PAGES:
        text = path.read_text(encoding="utf-8")
        assert scaling.page(text) == text, "run python scripts/scaling.py"


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


def test_every_launch_is_understood_by_its_launcher_and_by_us(monkeypatch):
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    monkeypatch.chdir(ROOT)
    values, found = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "MAIN": "host"}, []
    for script in scripts():
        script = re.sub(r"\$(\w+)", lambda name: values.get(name[1], ""), script.replace("\\\n", " "))
        for launcher, command in re.findall(r"(accelerate launch|torchrun) (.*?)(?:'|\n|$)", script):
            parser = launch_command_parser() if launcher == "accelerate launch" else get_args_parser()
            args = parser.parse_args(shlex.split(command))
            assert args.module and args.training_script == "finetune.train"
            recipe, _ = parse(Recipe, args.training_script_args, "")
            machines = int(str(getattr(args, "nnodes", 1)).split(":")[0])
            processes = getattr(args, "num_processes", None) or machines * int(args.nproc_per_node)
            assert recipe.gradient_accumulation_steps % processes == 0
            found.append((launcher, processes, int(args.max_restarts)))
    assert found == [("accelerate launch", 4, 0), ("torchrun", 2, 0), ("torchrun", 16, 20), ("torchrun", 16, 20)]


def test_a_job_that_was_killed_begins_again_or_goes_on_by_the_same_command():
    assert sum("--out_dir=out-mine --init_from=auto" in script for script in scripts()) == 2


def test_predicted_speed_falls_with_the_exchange_and_rises_with_the_gpus(scaling):
    config = GPTConfig(n_layer=12, n_head=12, n_embd=768)
    speed = {(n, steps): scaling.tokens_per_second(config, 8, n, steps) for n in scaling.GPUS for steps in (1, 8)}
    for few, many in zip(scaling.GPUS, scaling.GPUS[1:]):
        for steps in (1, 8):
            assert speed[few, steps] < speed[many, steps] <= speed[few, steps] * many / few * (1 + 1e-9)
    assert all(speed[n, 1] <= speed[n, 8] for n in scaling.GPUS)
    # by hand: 8 x 1,024 tokens in 52 ms, and 124 M floats twice through 12.5 GB/s, of which 35 ms are hidden
    assert speed[16, 1] == pytest.approx(
        16 * 8 * 1024 / (0.0523 + 2 * 15 / 16 * 4 * 124.4e6 / 12.5e9 - 0.0349), rel=0.02
    )
    assert scaling.update_seconds(2.0, 3, 1.0, 0.5, 0.0, crowd=2.0) == 15.0


def test_the_manifest_is_of_one_piece():
    (service,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "Service")
    (job,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "Job")
    (container,) = pod()["containers"]
    assert pod()["subdomain"] == service["metadata"]["name"] and service["spec"]["selector"] == {
        "job-name": job["metadata"]["name"]
    }
    assert f"--rdzv_endpoint={job['metadata']['name']}-0.{pod()['subdomain']}:" in container["args"][0]
    machines = job["spec"]["completions"]
    assert machines == job["spec"]["parallelism"] and f"--nnodes={machines} " in container["args"][0]
    assert f"--nproc_per_node={container['resources']['limits']['nvidia.com/gpu']} " in container["args"][0]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}


def test_data_parallelism_exchanges_four_bytes_a_parameter_once_an_update(scaling):
    """Counted where DDP hands its buckets over, against the formula of the table without its ring."""
    port = free_port()
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
