"""Where torch.compile does not work: a line, and a run without it."""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import forked
import pytest
import torch
from ports import free_port

from finetune import GPT
from finetune.common.errors import Failure, UsageError
from finetune.runtime import compiler
from finetune.runtime import device as devices
from finetune.training import setup, step, trainer
from finetune.training.state import Hooks


@pytest.fixture
def broken(monkeypatch):
    """A compiler that fails, as without Triton when something is compiled, not when torch.compile is called."""

    def fail(graph, inputs):
        raise RuntimeError("Cannot find a working triton installation\nand more")

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: whole(*args, **options, backend=fail))


def test_a_run_goes_on_without_a_compiler(tiny, broken):
    """As on a GPU, where compile=auto is on."""
    recipe, said = tiny(), []
    device = replace(devices.start(recipe), compile=True)
    Path("out").mkdir()
    run, state = setup.setup_run(recipe, device, said.append)
    (line,) = [line for line in said if "compile" in line]
    assert line.startswith("not compiled, because torch.compile does not work here (") and "\n" not in line
    assert "Cannot find a working triton installation" in line
    assert not device.compile and step.update(run, state, 1e-3).read()[0] > 0


def test_who_asks_for_a_compiler_that_fails_is_told(tiny, broken, monkeypatch):
    with pytest.raises(UsageError, match=r"^compile: torch.compile does not work here \(.*\); --compile=false") as told:
        trainer.train(tiny(compile="true"))
    assert "\n" not in str(told.value) and not Path("out").exists()


def test_an_error_of_the_compiler_in_an_update_is_told_in_a_line(tiny):
    """Of a graph larger than the one that was tried."""

    def fail(run, state):
        if state.step == 2:
            raise torch._dynamo.exc.TorchDynamoException("no kernel\nand more")

    with pytest.raises(Failure, match=r"^torch.compile failed at iter 2 \(no kernel\); --compile=false trains") as told:
        trainer.train(tiny(), hooks=Hooks(before_update=fail))
    assert told.value.code == 1


def test_nothing_is_compiled_to_see_whether_it_works_where_nothing_will_be(tiny, broken):
    for recipe, compiles in (tiny(), False), (tiny(eval_only=True), True):
        device = replace(devices.start(recipe), compile=compiles)
        compiler.check_compiler(recipe, device, pytest.fail)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")  # PyTorch's own
def test_layers_with_scales_of_their_own_share_a_graph(hf_model, monkeypatch, dtype):
    """Of 12 layers the first has none. torch compiles a function eight times at most; further layers would be slow."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter, whole = CompileCounter(), torch.compile
    hf = hf_model(n_layer=12, scale_attn_by_inverse_layer_idx=True)
    idx = torch.randint(0, 101, (2, 16), generator=torch.Generator().manual_seed(0))
    plain, compiled = GPT.from_hf(hf).train(), GPT.from_hf(hf).train()
    monkeypatch.setattr(torch, "compile", lambda *args, **options: whole(*args, **options, backend=counter))
    compiler.compile_model(compiled, False, torch.device("cpu"))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses = [network(idx, idx)[0] for network in (plain, compiled)]
    assert losses[0].equal(losses[1])
    sum(losses).backward()
    for one, other in zip(plain.parameters(), compiled.parameters()):
        assert one.grad.equal(other.grad)
    assert counter.frame_count == 2  # the loss is chunked on a CPU, and not compiled
    assert list(plain.state_dict()) == list(compiled.state_dict())


SCRIPT = """
import json, os, sys
from dataclasses import replace
import torch
from finetune.config.recipe import Recipe
from finetune.runtime import compiler, device

def fail(graph, inputs):
    raise RuntimeError("no compiler on this machine")

whole, rank = torch.compile, os.environ["RANK"]
torch.compile = lambda *args, **options: whole(*args, **options, backend=fail if rank == "1" else "eager")
recipe, said = Recipe(**json.loads(sys.argv[1])), []
found = replace(device.start(recipe), compile=True)
compiler.check_compiler(recipe, found, said.append)
print(json.dumps([found.compile, said]))
"""


@pytest.mark.heavy
def test_all_processes_compile_or_none(tiny):
    Path("script.py").write_text(SCRIPT)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    recipe = json.dumps(asdict(tiny(gradient_accumulation_steps=2)))
    ranks = [
        forked.Process("script.py", recipe, env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    for process in ranks:
        with process:
            out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        compiles, (line,) = json.loads(out.splitlines()[-1])
        assert not compiles and "no compiler on this machine" in line


@pytest.mark.heavy
def test_without_a_c_compiler_the_command_says_so(corpus):
    """The compiler itself, on a CPU. A process of its own, as torch reads CXX when it is imported."""
    import subprocess

    flags = "--tokenizer=char --init_from=scratch --n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --device=cpu".split()
    done = subprocess.run(
        [sys.executable, "-m", "finetune.train", corpus(), *flags, "--compile=true"],
        env={**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(Path("cache").absolute())},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("compile: torch.compile does not work here (") and done.stderr.count("\n") == 1
    assert not Path("out").exists()
