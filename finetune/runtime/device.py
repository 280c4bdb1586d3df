"""What a run computes on: device, processes, arithmetic, threads, and how fast that could be."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import re
import sys
import time
from dataclasses import dataclass

import psutil
import torch

from finetune.common.errors import UsageError
from finetune.runtime import fsdp

# dense bfloat16 TFLOP/s from the makers' data sheets, by the name CUDA gives the card
PEAK_TFLOPS = {
    "H200": 989,
    "H100": 989,
    "GH200": 989,
    "B200": 2250,
    "A100": 312,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "V100": 125,
    "T4": 65,
}
PATIENCE = datetime.timedelta(hours=2)  # the others wait while one process downloads weights or prepares a large text


@dataclass
class Device:
    accelerator: object
    dtype: torch.dtype  # of the matrix products
    compile: bool
    sharding: fsdp.FSDP | None = None  # None is data parallelism where there are several processes

    @property
    def torch_device(self):
        return self.accelerator.device

    def autocast(self):
        """The context in which a forward pass runs."""
        return torch.autocast(self.torch_device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @property
    def max_in_flight(self):
        """How many updates are begun before the first of them is asked for its numbers: a GPU should not wait for the
        host to look."""
        return 1 if self.torch_device.type == "cuda" else 0

    def uncompiled(self):
        """The context in which nothing is compiled: a single pass of some shape is not worth the wait."""
        return torch.compiler.set_stance("force_eager") if self.compile else contextlib.nullcontext()

    @contextlib.contextmanager
    def full_precision(self):
        """The context in which losses are measured that people will quote: float32, on recent GPUs with TF32 products
        when training is coarser than that anyway. bfloat16 would be off by some 1e-4 nats, and by more for GPT-2's
        logits of around -100."""
        before = torch.get_float32_matmul_precision()
        if self.torch_device.type == "cuda" and self.dtype != torch.float32:
            torch.set_float32_matmul_precision("high")
        try:
            with self.uncompiled():
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def memory(self):
        """`(most used so far by this process, all there is)` in bytes, of the GPU or of the computer."""
        if self.torch_device.type == "cuda":
            return (
                torch.cuda.max_memory_allocated(self.torch_device),
                torch.cuda.get_device_properties(self.torch_device).total_memory,
            )
        return peak_memory(), psutil.virtual_memory().total

    def describe(self):
        processes = self.accelerator.num_processes
        where = (
            torch.cuda.get_device_name(self.torch_device)
            if self.torch_device.type == "cuda"
            else f"{torch.get_num_threads()} threads"
        )
        sharded = f", {self.sharding.describe()}" if self.sharding else ""
        return (
            f"{processes} process{'es' if processes > 1 else ''} on {self.torch_device.type} ({where}),"
            f" {str(self.dtype).removeprefix('torch.')}{sharded}"
        )


def start(recipe):
    """The Machine that a recipe and the launcher decide. Raises UsageError when they do not fit this computer."""
    from accelerate import Accelerator, DistributedType
    from accelerate.utils import InitProcessGroupKwargs

    sharding = fsdp.from_launcher()
    device = choose_device(recipe.device)
    if device.type == "cpu":
        keep_heap()
        use_all_cores(recipe.cpu_threads)
    if recipe.deterministic:
        be_deterministic()
    # the loop does the accumulation; with this variable set accelerate would divide the loss once more
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    # arithmetic is chosen by our own autocast, so that evaluation and sampling can choose theirs
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        gradient_accumulation_steps=1,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
    if accelerator.distributed_type not in known:
        raise UsageError(
            f"the launcher is configured for {accelerator.distributed_type.value}; known are"
            f" {', '.join(kind.value for kind in known)}"
        )
    check_world_size(accelerator.num_processes)
    check_accumulation_divides(recipe, accelerator.num_processes)
    dtype = best_dtype(recipe.dtype, device)
    if sharding and sharding.cpu_offload and dtype == torch.float16:
        raise UsageError(
            "fsdp_offload_params: does not go with dtype=float16, whose loss scaling is the GPU's; use bfloat16 or"
            " float32"
        )
    if sharding and accelerator.distributed_type == DistributedType.NO:  # nobody to share with
        if sharding.cpu_offload:
            raise UsageError(
                "fsdp_offload_params: true cannot apply to a process that no launcher started; use accelerate launch"
            )
        sharding = None
    compiled = recipe.compile == "true" or (recipe.compile == "auto" and device.type == "cuda")
    return Device(accelerator, dtype, compiled, sharding)


def check_world_size(processes):
    """Raise UsageError where more processes were started together than know of each other: each would take itself for
    the first and write the same files."""
    started = {
        name: int(os.environ.get(name) or 1)
        for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    }
    name = max(started, key=started.get)
    if started[name] > processes:
        apart = "" if name == "WORLD_SIZE" else f"; for runs that have nothing to do with each other unset {name}"
        raise UsageError(
            f"{started[name]} processes were started ({name}) that do not all see each other; start them with torchrun,"
            f" or with accelerate launch and a file of recipes/accelerate{apart}"
        )
    # accelerate launch --cpu --num_processes=2 prepares for two and starts one
    if (
        processes == 1
        and "MASTER_ADDR" in os.environ
        and os.environ.get("ACCELERATE_USE_CPU") == "True"
        and "WORLD_SIZE" not in os.environ
    ):
        raise UsageError(
            "accelerate launch starts a single process with --cpu; several: --config_file=recipes/accelerate/cpu.yaml"
            " --num_processes=N"
        )


def check_accumulation_divides(recipe, processes):
    """Raise UsageError where the blocks of an update cannot be shared out evenly, saying what can."""
    steps, rows = recipe.gradient_accumulation_steps, recipe.blocks_per_update
    if recipe.eval_only or steps % processes == 0:
        return
    if rows % processes == 0:
        size = next(size for size in range(recipe.micro_batch_size, 0, -1) if rows % (size * processes) == 0)
        advice = (
            f"--batch_size={size} --gradient_accumulation_steps={rows // size} can, and the {rows:,} blocks of an"
            " update stay the same"
        )
    else:
        fewer = next(number for number in range(processes - 1, 0, -1) if steps % number == 0)
        more = -(-steps // processes) * processes
        advice = (
            f"{fewer} process{'es' * (fewer > 1)} can share these, and --gradient_accumulation_steps={more} can be"
            f" shared by {processes}, with {recipe.micro_batch_size * more:,} blocks an update instead of {rows:,}"
        )
    raise UsageError(f"gradient_accumulation_steps: {steps} cannot be shared among {processes} processes; {advice}")


def choose_device(choice="auto"):
    """The device that a recipe's choice means here. Raises UsageError when there is no such device."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        choice = "cpu"  # what `accelerate launch --cpu` says
    elif choice == "auto":
        choice = next(name for name, there in available.items() if there)
    if not available[choice]:
        raise UsageError(
            f"device: there is no {choice} here; torch sees"
            f" {', '.join(name for name, there in available.items() if there)}"
        )
    return torch.device(choice)


def best_dtype(choice, device):
    """The arithmetic of matrix products that a recipe's choice means on this device."""
    if choice != "auto":
        return getattr(torch, choice)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bfloat16() else torch.float32


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:  # getrusage would count the parent's memory at exec
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_heap():
    """Tell glibc to keep freed memory for the next step. By default it hands every large tensor back to the kernel,
    which fills fresh pages with zeros again: a quarter of a training step on CPU."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mapping for large blocks
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never give the top of the heap back


def use_all_cores(threads=0):
    """Give each process of this computer its share of the cores, or `threads`. accelerate launch would leave it one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def be_deterministic():
    """Only operations whose result is the same bits every time. Raises UsageError when the environment says
    otherwise."""
    wanted = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if wanted not in (":4096:8", ":16:8"):
        raise UsageError(f"deterministic: CUBLAS_WORKSPACE_CONFIG={wanted} in the environment contradicts it; unset it")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads memory it has not written
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def peak_flops(device, dtype):
    """`(FLOP/s, where the figure is from)`: the data sheet of a known GPU, else the rate of a matrix product measured
    now."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for card, tflops in PEAK_TFLOPS.items():
            if re.search(rf"\b{card}\b", name):
                return tflops * 1e12, f"{tflops} TFLOP/s, data sheet of {card}"
    n = 1024 if device.type == "cpu" else 4096
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        synchronize(device)
        began = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best, f"{2 * n**3 / best / 1e12:.2f} TFLOP/s, a {n} x {n} matrix product measured here"


def _cpu_has_bfloat16():
    """Whether matrix products in bfloat16 are faster than in float32: on processors with AVX512-BF16 or AMX."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def synchronize(device):
    """Wait for what a GPU has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
