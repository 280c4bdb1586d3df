"""FSDP2 on CPUs: a sharded run and its files equal those of one process."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import forked
import pytest
import torch
from accelerate.state import AcceleratorState
from ports import free_port
from safetensors.torch import load_file

from finetune.common.errors import UsageError
from finetune.gpt import GPT, GPTConfig
from finetune.runs.events import read_metrics
from finetune.runtime import device, fsdp
from finetune.training import setup, trainer

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def job(recipe, world=2, environment=FSDP, **more):
    return {"recipe": dataclasses.asdict(recipe), "world": world, "environment": environment, **more}


def harness(*jobs):
    """The outcomes of jobs, run one after the other in a process that forks, and its stderr."""
    Path("jobs.json").write_text(json.dumps(jobs))
    done = forked.run("harness", "jobs.json", timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def finish(*jobs):
    """Run the jobs; all their processes have to end well."""
    outcomes, error = harness(*jobs)
    assert [outcome["codes"] for outcome in outcomes] == [[0] * asked["world"] for asked in jobs], error


def events(out_dir, kind):
    return [event for event in read_metrics(Path(out_dir) / "metrics.jsonl") if event["event"] == kind]


def numbers(out_dir):
    """Losses and gradient norms of the updates of a run, and losses of its evaluations."""
    updates = [event[name] for event in events(out_dir, "iter") for name in ("loss", "grad_norm")]
    return updates, [event[name] for event in events(out_dir, "eval") for name in ("train_loss", "val_loss")]


def same(one, other, tolerance):
    for ours, wanted in zip(numbers(one), numbers(other)):
        assert ours == pytest.approx(wanted, abs=tolerance)


def newest(out_dir, name):
    return sorted(Path(out_dir, "last").glob("step-*"))[-1] / f"{name}.safetensors"


def weights(out_dir, name, n_embd):
    """Those of the newest state, without the biases of keys, whose gradient is only rounding error."""
    tensors = load_file(newest(out_dir, name))
    return {
        key: torch.cat([tensor[:n_embd], tensor[2 * n_embd :]]) if key.endswith("c_attn.bias") else tensor
        for key, tensor in tensors.items()
    }


def is_sharded(out_dir):
    return "sharded by FSDP2" in (events(out_dir, "start") + events(out_dir, "resume"))[-1]["machine"]


def logits(directory):
    """Of transformers' own model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    idx = torch.arange(48).reshape(3, 16) % model.config.vocab_size
    with torch.no_grad():
        return model(idx).logits


WAYS = {
    "sharded": {},
    "offloaded": {"FSDP_OFFLOAD_PARAMS": "true"},
    "recomputed": {"FSDP_ACTIVATION_CHECKPOINTING": "true", "FSDP_RESHARD_AFTER_FORWARD": "false"},
}


@pytest.mark.heavy
def test_five_updates_in_shards_are_those_of_one_process(tiny):
    """With clipping, dropout and accumulation: over 2 processes in all ways, and over 3, which cannot divide rows and
    tensors evenly, so that one has no row of the smallest tensor and none to evaluate."""
    shape = {
        "n_layer": 2,
        "n_embd": 10,
        "gradient_accumulation_steps": 6,
        "grad_clip": 0.1,
        "eval_iters": 1,
        "num_samples": 1,
        "sample_interval": 2,
    }
    recipe = tiny("whole", max_iters=5, eval_interval=2, always_save_checkpoint=True, **shape)
    trainer.train(recipe)
    assert min(event["grad_norm"] for event in events("whole", "iter")) > 2 * recipe.grad_clip
    jobs = [job(dataclasses.replace(recipe, out_dir=name), environment=FSDP | more) for name, more in WAYS.items()]
    keep_full = FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}
    finish(*jobs, job(dataclasses.replace(recipe, out_dir="three"), world=3, environment=keep_full))
    samples = [event["texts"] for event in events("whole", "samples")]
    for out_dir in (*WAYS, "three"):
        assert is_sharded(out_dir) and len(events(out_dir, "eval")) == 4
        same(out_dir, "whole", 1e-5)
        assert [event["texts"] for event in events(out_dir, "samples")] == samples
        for name in ("model", "optimizer"):
            ours, wanted = weights(out_dir, name, 10), weights("whole", name, 10)
            assert ours.keys() == wanted.keys()
            for key, tensor in wanted.items():
                scale = max(tensor.abs().max(), 1.0 if name == "model" else 0.0)
                assert (ours[key] - tensor).abs().max() <= 1e-5 * scale, (out_dir, key)
        assert torch.allclose(logits(f"{out_dir}/iter_000004"), logits("whole/iter_000004"), rtol=0, atol=1e-5)


@pytest.mark.heavy
def test_a_state_goes_on_with_any_number_of_processes(tiny):
    """2 sharded, 1, 2 data-parallel and 3 sharded processes, against one process all the way."""
    recipe = tiny(dropout=0.0, lr_decay_iters=12, warmup_iters=2, gradient_accumulation_steps=6, eval_interval=4)
    trainer.train(dataclasses.replace(recipe, out_dir="whole", max_iters=12))
    lengths = (4, 6, 9, 12)
    on = dataclasses.replace(recipe, init_from="resume", n_layer=None, n_head=None, n_embd=None)
    parts = [dataclasses.replace(on if number else recipe, max_iters=length) for number, length in enumerate(lengths)]
    finish(job(parts[0]), job(parts[1], world=1, environment={}), job(parts[2], environment={}), job(parts[3], world=3))
    whole, out = ([(event["iter"], event["lr"]) for event in events(out_dir, "iter")] for out_dir in ("whole", "out"))
    assert whole == out and is_sharded("out")
    assert numbers("out")[0] == pytest.approx(numbers("whole")[0], abs=1e-5)
    assert events("out", "eval")[-1]["val_loss"] == pytest.approx(events("whole", "eval")[-1]["val_loss"], abs=1e-5)


@pytest.mark.heavy
def test_sharded_runs_survive_kills_and_nan(tiny):
    """A killed process ends the others, and the run resumes to the bit. A NaN in one shard skips the update of all
    ranks, and the run rolls back to a state or to its start."""
    recipe = tiny(max_iters=8, gradient_accumulation_steps=2)
    whole, killed, nan, unsaved = (
        dataclasses.replace(recipe, out_dir=name) for name in ("whole", "killed", "nan", "unsaved")
    )
    unsaved = dataclasses.replace(unsaved, save_interval=100)
    fault = {"rank": 1, "iteration": 5}
    jobs = job(whole), job(killed, signal=fault | {"number": 9}), job(nan, nan=fault), job(unsaved, nan=fault)
    outcomes, error = harness(*jobs, job(dataclasses.replace(killed, init_from="resume")))
    ends = [outcome["codes"] for outcome in outcomes]
    assert ends[1][1] == -9 and ends[1][0] != 0 and outcomes[1]["seconds"] < 120
    assert [codes for number, codes in enumerate(ends) if number != 1] == [[0, 0]] * 4, error
    assert numbers("killed") == numbers("whole")
    for name in ("model", "optimizer"):
        assert newest("killed", name).read_bytes() == newest("whole", name).read_bytes()
    for out_dir, step in (("nan", 5), ("unsaved", 0)):
        (event,) = events(out_dir, "rollback")
        assert event["step"] == step and "grad_norm is nan" in event["problem"]
    updates = {out_dir: [event["loss"] for event in events(out_dir, "iter")] for out_dir in ("whole", "nan", "unsaved")}
    assert updates["nan"][:6] == updates["whole"][:6] and updates["unsaved"][0] == updates["whole"][0]
    assert updates["unsaved"][1] != updates["whole"][1]  # learned with half the rate


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 2e-2), ("float16", 5e-3)])
def test_coarser_arithmetic_is_that_of_one_process(tiny, dtype, tolerance):
    recipe = tiny("whole", max_iters=6, gradient_accumulation_steps=2, dropout=0.0, dtype=dtype)
    trainer.train(recipe)
    finish(job(dataclasses.replace(recipe, out_dir="out")))
    same("out", "whole", tolerance)


SCRIPT = """
import json, os, sys
from torch.utils._python_dispatch import TorchDispatchMode
from finetune.config.recipe import Recipe
from finetune.evaluation.split_loss import split_loss
from finetune.runtime import device
from finetune.runtime.fsdp import local_shard
from finetune.training import setup, step
from finetune.training.state import Hooks

class Exchanges(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))

def poison(run, state):
    if os.environ["RANK"] == "1":
        local_shard(weights[0].grad).mul_(float("nan"))

recipe = Recipe(**json.loads(sys.argv[1]))
computer, found = device.start(recipe), {}
for reshard in (True, False):
    assert computer.sharding.reshard_after_forward
    computer.sharding.reshard_after_forward = reshard
    run, state = setup.setup_run(recipe, computer, lambda line: None, Hooks(after_backward=poison))
    with Exchanges() as exchanges:
        step.backward(run, state)
    split_loss(computer, run.model, run.val, [0])
    weights = list(run.model.parameters())
    moments = [state[kind] for state in run.optimizer.state.values() for kind in ("exp_avg", "exp_avg_sq")]
    tensors = {"weights": weights, "gradients": [weight.grad for weight in weights], "moments": moments}
    whole = sum(weight.numel() for weight in weights)
    held = {name: sum(local_shard(tensor).numel() for tensor in group) / whole for name, group in tensors.items()}
    kinds = ("allgather", "reduce_scatter")
    found[str(reshard)] = held, [sum(kind in name for name in exchanges.seen) for kind in kinds]
    computer.sharding.reshard_after_forward = True
assert run.model.gradient_checkpointing
before = [local_shard(weight.detach()).clone() for weight in weights]
assert not step.update(run, state, 1e-3).numbers[1].isfinite()
assert all(local_shard(weight.detach()).equal(old) for weight, old in zip(weights, before))
with open(f"found-{os.environ['RANK']}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
def test_a_process_holds_its_shard_and_no_more(tiny):
    """Under accelerate launch. Each of 2 processes holds half of weights, gradients and moments, also after an
    evaluation. With resharding, each of 3 micro-batches gathers the weights of 3 blocks twice and the rest once;
    without, an update gathers all once. A NaN in one shard changes no weight on any rank."""
    recipe = tiny(".", n_layer=3, gradient_accumulation_steps=6)
    Path("script.py").write_text(SCRIPT)
    launch = [Path(sys.executable).parent / "accelerate", "launch", "--num_processes=2", "--num_machines=1"]
    policy = [
        "--use_fsdp",
        "--fsdp_version=2",
        "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
        "--fsdp_transformer_layer_cls_to_wrap=Block",
        "--fsdp_activation_checkpointing=true",
    ]
    usual = ["--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no"]
    script = ["script.py", json.dumps(dataclasses.asdict(recipe))]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *policy, *usual, *script], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        for reshard, (held, counts) in json.loads(Path(f"found-{rank}.json").read_text()).items():
            assert held == {"weights": 0.5, "gradients": 0.5, "moments": 1.0}
            fetched = 3 * (3 + 1 + 3) if reshard == "True" else 3 + 1
            assert counts == [fetched, 3 * (3 + 1)]


REFUSED = {
    "fsdp_version: 2": {"FSDP_VERSION": "1"},
    "fsdp_reshard_after_forward": {"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"},
    "SIZE_BASED_WRAP cannot apply": {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"},
    "GPT2Block is not in this model; set Block": {
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "GPT2Block",
    },
    "fsdp_ignored_modules": {"FSDP_IGNORED_MODULES": "wte"},
    "fsdp_activation_checkpointing_offload": {
        "FSDP_ACTIVATION_CHECKPOINTING": "true",
        "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true",
    },
    "the launcher's FSDP options": {"FSDP_RESHARD_AFTER_FORWARD": "perhaps"},
    "cannot apply without a launcher": {"FSDP_OFFLOAD_PARAMS": "true"},
    "DeepSpeed, which is not supported; recipes/accelerate/fsdp2.yaml": {"ACCELERATE_USE_DEEPSPEED": "true"},
    "Megatron-LM, which is not supported": {"ACCELERATE_USE_MEGATRON_LM": "true"},
    "parallelism, which is not supported": {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_the_launcher_asks_for_in_vain_is_told_in_one_line(data, command, monkeypatch, words):
    for name, value in (FSDP | REFUSED[words]).items():
        monkeypatch.setenv(name, value)
    code, out, error = command("train", f"--dataset={data}", "--init_from=scratch", "--device=cpu", "--out_dir=out")
    assert code == 2 and words in error and error.count("\n") == 1 and not Path("out").exists()


def test_what_the_launcher_asks_for(monkeypatch):
    assert fsdp.from_launcher() is None
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    assert fsdp.from_launcher() == fsdp.FSDP(True, cpu_offload=False, activation_checkpointing=False)
    for name in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING"):
        monkeypatch.setenv(f"FSDP_{name}", "true")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "Block")
    monkeypatch.setenv("FSDP_BACKWARD_PREFETCH", "BACKWARD_PRE")
    assert fsdp.from_launcher() == fsdp.FSDP(False, cpu_offload=True, activation_checkpointing=True)


def test_a_plugin_without_options_of_later_releases(monkeypatch):
    """As that of accelerate before 1.15."""
    whole = accelerate.FullyShardedDataParallelPlugin

    def earlier():
        known = vars(whole()).items()
        return SimpleNamespace(**{name: value for name, value in known if name != "activation_checkpointing_offload"})

    monkeypatch.setattr(accelerate, "FullyShardedDataParallelPlugin", earlier)
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    assert fsdp.from_launcher() == fsdp.FSDP(True, cpu_offload=False, activation_checkpointing=False)


def test_what_torch_is_told(monkeypatch):
    told = []
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda kind, shape: (kind, shape))
    monkeypatch.setattr(
        "torch.distributed.fsdp.fully_shard",
        lambda module, **options: told.append(options | {"module": module}) or module,
    )
    network = GPT(GPTConfig(n_layer=2, n_head=1, n_embd=4, vocab_size=8, block_size=4))
    assert fsdp.shard(network, fsdp.FSDP(False, True), torch.device("cuda")) is network
    assert [options["module"] for options in told] == [*network.h, network]
    assert all(options["mesh"] == ("cuda", (2,)) and options["offload_policy"].pin_memory for options in told)
    assert [options.get("reshard_after_forward") for options in told] == [False, False, None]


def test_one_process_without_a_launcher_shards_nothing(tiny, monkeypatch):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    trainer.train(tiny(max_iters=1))
    assert not is_sharded("out")


def test_one_process_behind_a_launcher_is_a_shard_of_one(tiny, monkeypatch):
    trainer.train(tiny("whole", max_iters=2))
    AcceleratorState._reset_state(True)
    port = free_port()
    launched = {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_WORLD_SIZE": 1,
        "OMP_NUM_THREADS": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
    }
    for name, value in (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"} | launched).items():
        monkeypatch.setenv(name, str(value))
    try:
        trainer.train(tiny(max_iters=2))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert is_sharded("out") and "offloaded" in events("out", "start")[0]["machine"]
    same("out", "whole", 1e-5)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"batch_size": "auto"}, "batch_size: auto cannot try what fits"),
        ({"lora_rank": 2, "init_from": "gpt2"}, "lora_rank: adapters are not sharded"),
        ({"optimizer_dtype": "bfloat16"}, "optimizer_dtype: bfloat16 cannot apply"),
        ({"memory": "auto"}, "memory: auto counts for whole weights"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(tiny, values, told):
    recipe = tiny(**values)
    with pytest.raises(UsageError, match=told):
        setup.setup_run(recipe, dataclasses.replace(device.start(recipe), sharding=fsdp.FSDP()), print)
