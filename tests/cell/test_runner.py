"""What an exception makes of its cell."""

import errno

import pytest
import torch

from ftmatrix.cell import failure
from ftmatrix.errors import ModelError
from ftmatrix.records import Outcome


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("unable to mmap 84949208 bytes from file </x>: Cannot allocate memory (12)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_every_way_of_running_out_of_memory_is_known(error: BaseException) -> None:
    assert failure(error, None).outcome is Outcome.OUT_OF_MEMORY
    wrapped = ModelError("not a causal LM that can be loaded")
    wrapped.__cause__ = error
    assert failure(wrapped, None).outcome is Outcome.OUT_OF_MEMORY


def test_other_errors_are_what_they_are() -> None:
    assert failure(ValueError("memory of a fish"), None).outcome is Outcome.CRASHED
    assert failure(RuntimeError("shape mismatch"), None).outcome is Outcome.CRASHED
    assert failure(OSError(errno.ENOSPC, "No space left on device"), None).outcome is Outcome.CRASHED
    assert failure(ModelError("no such folder"), None).outcome is Outcome.MISSING_MODEL
