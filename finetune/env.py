"""What finetune runs on, to paste into a report of a bug; or a lock of the versions that a run needs.

finetune env
finetune env --lock > requirements.txt
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import finetune
from finetune.common.errors import UsageError, describe_error
from finetune.common.formatting import gigabytes
from finetune.common.machine import cpu_name, num_cores
from finetune.config.cli import parse, run
from finetune.config.options import option

USAGE = """usage: finetune env [--lock] [--json]

Prints versions, devices and memory on one screen, to paste into a bug report. It shows no user name, machine name, path
or secret. --lock prints name==version of every package that a run needs, for pip install -r."""
DISTRIBUTION = "finetune-gpt2"
PACKAGES = "torch transformers datasets accelerate tokenizers tiktoken safetensors huggingface_hub numpy peft".split()
EXTRAS = ("lora", "gguf", "onnx", "metrics", "documents", "trackers")
VARIABLES = """
    CUDA_VISIBLE_DEVICES CUDA_LAUNCH_BLOCKING PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF CUBLAS_WORKSPACE_CONFIG
    NCCL_P2P_DISABLE NCCL_IB_DISABLE OMP_NUM_THREADS MKL_NUM_THREADS TOKENIZERS_PARALLELISM HF_HUB_OFFLINE
    HF_DATASETS_OFFLINE
""".split()  # that change a run and hold no secret


@dataclass
class Options:
    lock: bool = option(False, "print the exact version of every package that a run needs")
    json: bool = option(False, "print a JSON object")


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    if options.lock:
        versions, by_hand = lock()
        lines = [f"# Python {platform.python_version()}", *(f"{name}=={versions[name]}" for name in sorted(versions))]
        lines += [f"# {name} {version}: not from an index, install it by hand" for name, version in by_hand.items()]
        found = {"python": platform.python_version(), "packages": {**versions, **by_hand}}
    else:
        found = {name: _without_home(value) for name, value in facts()}
        width = max(map(len, found))
        lines = [f"{name:{width}}  {value}" for name, value in found.items()]
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines))


def facts() -> Iterator[tuple[str, str]]:
    """(name, value) of what a report of a bug needs."""
    yield "finetune", finetune.__version__
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", platform.platform()
    for name in PACKAGES:
        yield name, _version(name) or "not installed"
    yield from _devices()
    yield "CPU", f"{cpu_name()}, {num_cores()} of {os.cpu_count()} cores"
    yield "memory", _memory()
    set_here = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield "environment", " ".join(set_here) or "nothing set that changes a run"


def lock() -> tuple[dict[str, str], dict[str, str]]:
    """{name: version} of finetune and all that it needs, with the extras that are installed: from an index, and from
    elsewhere, such as a checkout. Raises UsageError if finetune itself is not installed."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    if _version(DISTRIBUTION) is None:
        raise UsageError(f"lock: {DISTRIBUTION} is not installed in this Python; pip install {DISTRIBUTION}")
    versions: dict[str, str] = {}
    by_hand: dict[str, str] = {}
    seen, waiting = set(), [Requirement(f"{DISTRIBUTION}[{','.join(EXTRAS)}]")]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, *wanted.extras) in seen:
            continue
        seen.add((name, *wanted.extras))
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of an extra that is not installed
            continue
        (by_hand if found.read_text("direct_url.json") else versions)[name] = found.version
        for requirement in map(Requirement, found.requires or ()):
            if any(
                not (mark := requirement.marker) or mark.evaluate({"extra": extra}) for extra in ("", *wanted.extras)
            ):
                waiting.append(requirement)
    return versions, by_hand


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[tuple[str, str]]:
    """What torch sees, and the driver; a torch that cannot be imported is a finding too."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "torch fails", describe_error(error)
        return
    builds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    yield "torch is for", ", ".join(f"{name} {version}" for name, version in builds.items() if version) or "CPU"
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        capability = f"compute capability {card.major}.{card.minor}"
        yield f"GPU {index}", f"{card.name}, {gigabytes(card.total_memory)}, {capability}"
    if torch.backends.mps.is_available():
        yield "GPU", "Apple, through MPS"
    yield "driver", _driver()


def _driver() -> str:
    """The version of the NVIDIA driver, and the GPUs that it sees."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return "no nvidia-smi"
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi fails: {describe_error(error)}"
    return "; ".join(answer.stdout.splitlines())


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{gigabytes(memory.total)}, {gigabytes(memory.available)} available"


def _without_home(text: str) -> str:
    """A text without the path of the home directory, which often holds a name."""
    return text.replace(str(Path.home()), "~") if Path.home() != Path("/") else text


if __name__ == "__main__":
    run(main)
