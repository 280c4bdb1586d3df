"""What a call from Python leaves as it was: training changes much that belongs to the whole process."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import warnings
from collections.abc import Generator
from typing import Any

import numpy as np

ONE_AT_A_TIME = threading.RLock()  # calls from other threads wait; one inside a callback does not


@contextlib.contextmanager
def unchanged() -> Generator[None]:
    """Afterwards are as before: threads, precision, determinism and random state of torch, random numbers of Python and
    numpy, the environment, warning filters, loggers, and the state that accelerate shares among its objects. Within,
    torch computes as in a new process, so that a call gives the figures of the command."""
    with (
        ONE_AT_A_TIME,
        warnings.catch_warnings(),
        _environment(),
        _loggers(),
        _random_state(),
        _torch_settings(),
        _torch_modes(),
        _accelerate_state(),
    ):
        yield


@contextlib.contextmanager
def _random_state() -> Generator[None]:
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _environment() -> Generator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


@contextlib.contextmanager
def _loggers() -> Generator[None]:
    """Levels and handlers of the loggers that exist already."""
    named = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(logger for logger in named if isinstance(logger, logging.Logger))]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate, logger.disabled) for logger in loggers]
    try:
        yield
    finally:
        for logger, level, handlers, propagate, disabled in before:
            if logger.level != level:  # setting it clears the caches of all loggers
                logger.setLevel(level)
            logger.handlers[:] = handlers
            logger.propagate, logger.disabled = propagate, disabled


@contextlib.contextmanager
def _torch_settings() -> Generator[None]:
    import torch

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = _determinism()
    utils, cudnn = torch.utils.deterministic, torch.backends.cudnn
    filled, benchmark = utils.fill_uninitialized_memory, cudnn.benchmark  # pyrefly: ignore[missing-attribute]
    cudnn_sdp = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        with _float32_products():
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        if _determinism() != deterministic:  # setting it imports torch's compiler
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        utils.fill_uninitialized_memory = filled  # pyrefly: ignore[missing-attribute]
        cudnn.benchmark = benchmark
        torch.backends.cuda.enable_cudnn_sdp(cudnn_sdp)


@contextlib.contextmanager
def _float32_products() -> Generator[None]:
    """Matrix products of float32 in float32."""
    import torch

    # once the user has set `fp32_precision` (torch 2.9), reading the older setting is an error
    places = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    backends: list[Any] = [place for place in places if hasattr(place, "fp32_precision")]
    before = [backend.fp32_precision for backend in backends]
    older = None
    with contextlib.suppress(RuntimeError):
        older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older or "highest")
        for backend, precision in zip(backends, before):
            backend.fp32_precision = "none"  # as `torch.backends.fp32_precision` says, now and whenever that changes
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


@contextlib.contextmanager
def _torch_modes() -> Generator[None]:
    """Gradients, no autocast, and new tensors on the CPU, whatever the caller has switched on."""
    import torch

    with contextlib.ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # a mode that costs time in every call of torch
            modes.enter_context(torch.device("cpu"))
        yield


def _determinism() -> tuple[bool, bool]:
    """Whether algorithms must be deterministic, and whether others only warn."""
    import torch

    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@contextlib.contextmanager
def _accelerate_state() -> Generator[None]:
    """An Accelerator of the user, and the one of a run, know nothing of each other."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [kind._shared_state for kind in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(shared, before):
            state.clear()
            state.update(values)
