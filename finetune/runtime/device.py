"""Device, process group, precision and threads of a run, and the peak FLOP/s of the device."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import os
import re
import statistics
import sys
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from finetune.common.addresses import address_of
from finetune.common.errors import UsageError, first_line
from finetune.common.machine import drop_stray_ranks, num_cores, read_proc
from finetune.config.recipe import Recipe
from finetune.runtime import fsdp, process_group

if TYPE_CHECKING:
    from accelerate import Accelerator

TESTED_TORCH = "2.14"  # the newest release that the tests have run with
# dense bfloat16 TFLOP/s from the manufacturers' data sheets; the first key that is a part of CUDA's device name counts
PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H200 NVL": 835,
    "H200": 989, "H100": 989, "GH200": 989, "B200": 2250, "A100": 312, "A10G": 70, "A10": 125, "L40S": 362, "L4": 121,
    "RTX 4090": 165, "RTX 3090": 71, "V100": 125, "T4": 65,
}  # fmt: skip
# of ranks for one that downloads weights or prepares a large text; a heartbeat tells that from one that hangs
MOST_WAITING = datetime.timedelta(hours=2)
PEAK_TRIES, PEAK_SECONDS = (3, 30), 0.05  # of the matrix product that is measured where no data sheet is known


@dataclass
class Device:
    accelerator: Accelerator
    dtype: torch.dtype  # of matrix products
    compile: bool
    sharding: fsdp.FSDP | None = None  # None: DDP if there are several processes
    group: process_group.Group | None = None  # the processes, if there are several

    @property
    def torch_device(self) -> torch.device:
        return self.accelerator.device

    def autocast(self) -> torch.autocast:
        """Context of a forward pass."""
        return torch.autocast(self.torch_device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @property
    def max_in_flight(self) -> int:
        """Updates in flight before the oldest is read, so that the GPU never waits for the host."""
        return 1 if self.torch_device.type == "cuda" else 0

    def uncompiled(self) -> AbstractContextManager[object]:
        """Context without compilation, which takes longer than a single pass saves."""
        return torch.compiler.set_stance("force_eager") if self.compile else contextlib.nullcontext()

    @contextlib.contextmanager
    def full_precision(self) -> Generator[None, None, None]:
        """Context for losses that are reported: float32, with TF32 products on a GPU if training uses a lower
        precision. bfloat16 would be off by about 1e-4 nats, and by more for GPT-2's logits of around -100."""
        before = torch.get_float32_matmul_precision()
        if self.torch_device.type == "cuda" and self.dtype != torch.float32:
            torch.set_float32_matmul_precision("high")
        try:
            with self.uncompiled():
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def memory(self) -> tuple[int, int]:
        """(peak of this process, total) in bytes, of the GPU or of the host."""
        if self.torch_device.type == "cuda":
            total = torch.cuda.get_device_properties(self.torch_device).total_memory
            return torch.cuda.max_memory_allocated(self.torch_device), total
        return peak_memory(), psutil.virtual_memory().total

    def describe(self) -> str:
        processes, kind = self.accelerator.num_processes, self.torch_device.type
        name = torch.cuda.get_device_name(self.torch_device) if kind == "cuda" else f"{torch.get_num_threads()} threads"
        sharded = f", {self.sharding.describe()}" if self.sharding else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{processes} process{'es' if processes > 1 else ''} on {kind} ({name}), {dtype}{sharded}"


def start(recipe: Recipe) -> Device:
    """Set up the device, process group and precision of the recipe and the launcher. Raises UsageError."""
    drop_stray_ranks()
    process_group.check_variables()
    sharding = fsdp.from_launcher()
    device = choose_device(recipe.device)
    if device.type == "cpu":
        keep_heap()
        use_all_cores(recipe.cpu_threads)
    if recipe.deterministic:
        be_deterministic(device)
    # the training loop accumulates gradients; with this variable accelerate would divide the loss a second time
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    # `Device.autocast` sets the precision, so that evaluation and sampling can use another
    group = process_group.wait_for_all(are_far_apart=address_of(recipe.out_dir) is not None)
    with _variables_of_accelerate():
        from accelerate import Accelerator, DistributedType
        from accelerate.utils import InitProcessGroupKwargs

        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",
            gradient_accumulation_steps=1,
            kwargs_handlers=[
                InitProcessGroupKwargs(init_method=group.init_method if group else None, timeout=MOST_WAITING)
            ],
        )
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
    if accelerator.distributed_type not in known:
        raise UsageError(f"the launcher is configured for {accelerator.distributed_type.value}, which is not supported")
    process_group.check_world_size(accelerator.num_processes)
    if accelerator.device.type != device.type:  # accelerate keeps the device of the first Accelerator of a process
        problem = f"this process holds an Accelerator on {accelerator.device.type}, and {device.type} is asked for"
        raise UsageError(f"device: {problem}; start a new process")
    check_accumulation_divides(recipe, accelerator.num_processes)
    dtype = best_dtype(recipe.dtype, device)
    if sharding and sharding.cpu_offload and dtype == torch.float16:
        raise UsageError("fsdp_offload_params: dtype=float16 scales the loss on the GPU; use bfloat16 or float32")
    if sharding and accelerator.distributed_type == DistributedType.NO:  # a single process without a launcher
        if sharding.cpu_offload:
            raise UsageError("fsdp_offload_params: cannot apply without a launcher; use accelerate launch")
        sharding = None
    compiled = recipe.compile == "true" or (recipe.compile == "auto" and device.type == "cuda")
    return Device(accelerator, dtype, compiled, sharding, group)


@contextlib.contextmanager
def _variables_of_accelerate() -> Generator[None]:
    """Context in which accelerate reads the environment. Raises UsageError for what it refuses there."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if not (given := sorted(name for name in os.environ if name.startswith("ACCELERATE_"))):
            raise
        said = ", ".join(f"{name}={os.environ[name]}" for name in given)
        raise UsageError(f"{said} in the environment: {first_line(error)}; unset what no launcher has set") from error


def check_accumulation_divides(recipe: Recipe, processes: int) -> None:
    """Raise UsageError, with values that work, if the processes cannot share the micro-batches of an update evenly."""
    steps, rows = recipe.gradient_accumulation_steps, recipe.blocks_per_update
    if recipe.eval_only or steps % processes == 0:
        return
    if rows % processes == 0:
        size = next(size for size in range(recipe.micro_batch_size, 0, -1) if rows % (size * processes) == 0)
        advice = f"--batch_size={size} --gradient_accumulation_steps={rows // size} can, with the same {rows:,} blocks"
    else:
        fewer = next(number for number in range(processes - 1, 0, -1) if steps % number == 0)
        more = -(-steps // processes) * processes
        advice = f"{fewer} process{'es' * (fewer > 1)} can, or --gradient_accumulation_steps={more}"
        advice += f" with {recipe.micro_batch_size * more:,} blocks an update instead of {rows:,}"
    raise UsageError(f"gradient_accumulation_steps: {steps} cannot be shared among {processes} processes; {advice}")


def choose_device(choice: str = "auto") -> torch.device:
    """The device for a recipe's `device`. Raises UsageError if this computer has none."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":  # `accelerate launch --cpu` sets the variable
        on_cpu = fsdp.is_true("ACCELERATE_USE_CPU")
        choice = "cpu" if on_cpu else next(name for name, there in available.items() if there)
    if not available[choice]:
        found = ", ".join(name for name, there in available.items() if there)
        raise UsageError(f"device: there is no {choice} here; torch finds {found}")
    return torch.device(choice)


def best_dtype(choice: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products on this device for a recipe's `dtype`."""
    if choice != "auto":
        return getattr(torch, choice)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bfloat16() else torch.float32


def about_torch(version: str = str(torch.__version__)) -> str | None:
    """What to say about a torch that is newer than those tested; None if it is not."""
    from packaging.version import Version

    if Version(version).release[:2] <= Version(TESTED_TORCH).release:
        return None
    return f"torch {version} is newer than {TESTED_TORCH}, the newest that finetune was tested with"


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    # not getrusage, which includes the parent's memory at exec
    if found := re.search(r"VmHWM:\s+(\d+)", read_proc("self/status")):
        return int(found[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_heap() -> None:
    """Make glibc keep freed memory. By default it returns every large tensor to the kernel, which zeroes the pages
    again: a quarter of a training step on a CPU."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(-4, 0)  # M_MMAP_MAX: no mmap for large blocks
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never trim the heap


def use_all_cores(threads: int = 0) -> None:
    """Use this process's share of the node's cores, `threads`, or what OMP_NUM_THREADS says of a process alone: a
    launcher sets that to one thread."""
    processes = process_group.local_size()
    is_launched = "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    asked = "" if is_launched else os.environ.get("OMP_NUM_THREADS", "")
    given = int(asked) if asked.isdecimal() and asked.isascii() and len(asked) < 5 else 0
    torch.set_num_threads(threads or given or max(1, num_cores() // processes))


def be_deterministic(device: torch.device) -> None:
    """Use only operations that give the same bits every time. Raises UsageError if the environment contradicts, or if
    the GPU was used in a way that excludes it."""
    wanted = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if wanted not in (":4096:8", ":16:8"):
        raise UsageError(f"deterministic: CUBLAS_WORKSPACE_CONFIG={wanted} in the environment contradicts it; unset it")
    torch.use_deterministic_algorithms(True)
    # no operation here reads uninitialised memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore[missing-attribute]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    if torch.cuda.is_initialized():  # older versions of torch have read the variable at their first product
        one = torch.ones(1, 1, device=device)
        try:
            torch.mm(one, one)
        except RuntimeError as error:
            torch.use_deterministic_algorithms(False)
            if "CUBLAS_WORKSPACE_CONFIG" not in str(error):
                raise
            way = f"set CUBLAS_WORKSPACE_CONFIG={wanted} before Python starts"
            raise UsageError(f"deterministic: this process has used the GPU already; {way}") from error


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """(FLOP/s, its source): from the data sheet of a known GPU, else from timing a matrix product."""
    card = card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if card and dtype != torch.float32:
        return PEAK_TFLOPS[card] * 1e12, f"{PEAK_TFLOPS[card]} TFLOP/s, data sheet of {card}"
    n = 1024 if device.type == "cpu" else 4096
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    tries: list[float] = []
    while len(tries) < PEAK_TRIES[0] or (len(tries) < PEAK_TRIES[1] and sum(tries) < PEAK_SECONDS):
        synchronize(device)
        began = time.perf_counter()
        a @ b
        synchronize(device)
        tries.append(time.perf_counter() - began)
    best, usual = min(tries), statistics.median(tries)
    measured = f"{2 * n**3 / best / 1e12:.2f} TFLOP/s, the best of {len(tries)} {n} x {n} matrix products here"
    return 2 * n**3 / best, f"{measured}; half of them took up to {usual / best - 1:.0%} longer"


def card_of(name: str) -> str | None:
    """The key of PEAK_TFLOPS for one of CUDA's device names; None of a MIG slice, which is a part of a card."""
    if re.search(r"\bMIG\b", name):
        return None
    return next((card for card in PEAK_TFLOPS if re.search(rf"\b{card}\b", name)), None)


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX, which make bfloat16 products faster than float32."""
    return re.search(r"\b(avx512_bf16|amx_bf16)\b", read_proc("cpuinfo")) is not None


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
