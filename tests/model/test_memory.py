"""Memory that runs out, faked."""

from __future__ import annotations

import weakref

import pytest
import torch

from headscope.errors import ShapeError
from headscope.model.memory import in_batches, out_of_memory


def device_of(capacity, error):
    """A run that fits `capacity` items, and the sizes that were tried."""
    tried = []

    def run(batch):
        tried.append(len(batch))
        if len(batch) > capacity:
            raise error
        return [10 * item for item in batch]

    return run, tried


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 137438953472 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:24] or type(error).__name__)
def test_the_batch_is_halved_and_nothing_is_lost_or_repeated(error):
    # 11 items, at most 2 at once: 8 fails, 4 fails, then 2, 2, 2, 2, 2, 1
    run, tried = device_of(2, error)
    batches = list(in_batches(range(11), 8, run))
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert [item for batch, _ in batches for item in batch] == list(range(11))
    assert [value for _, result in batches for value in result] == [10 * item for item in range(11)]


def test_a_batch_that_fits_is_not_split():
    run, tried = device_of(100, MemoryError())
    assert [list(batch) for batch, _ in in_batches([1, 2, 3, 4, 5], 2, run)] == [[1, 2], [3, 4], [5]]
    assert tried == [2, 2, 1]


def test_an_odd_batch_halves_down():
    # 5 -> 2 -> 1
    run, tried = device_of(1, MemoryError())
    assert [list(batch) for batch, _ in in_batches([1, 2, 3], 5, run)] == [[1], [2], [3]]
    assert tried == [3, 1, 1, 1]


def test_memory_that_runs_out_later_halves_from_there():
    tried = []

    def run(batch):
        tried.append(list(batch))
        if len(batch) == 4 and batch[0] == 4:
            raise MemoryError

    assert [list(batch) for batch, _ in in_batches(range(8), 4, run)] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert tried == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [6, 7]]


def test_a_single_prompt_that_does_not_fit_is_the_user_s_to_mend():
    run, tried = device_of(0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(
        ShapeError, match="memory ran out with a single prompt in the batch; use shorter prompts"
    ) as caught:
        list(in_batches([1, 2, 3, 4], 4, run))
    assert tried == [4, 2, 1]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_pass_through_at_once(error):
    run, tried = device_of(0, error)
    with pytest.raises(type(error)) as caught:
        list(in_batches([1, 2], 2, run))
    assert caught.value is error
    assert tried == [2]
    assert not out_of_memory(error)


def test_the_failed_attempt_is_let_go_before_the_next():
    # a tensor held by the error's traceback would keep the memory that the half batch needs
    class Big:
        pass

    alive = []

    def run(batch):
        assert all(reference() is None for reference in alive)
        big = Big()
        alive.append(weakref.ref(big))
        if len(batch) > 1:
            raise MemoryError

    assert len(list(in_batches([1, 2], 2, run))) == 2


def test_no_items_make_no_batches():
    assert list(in_batches([], 4, lambda batch: pytest.fail("ran"))) == []


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_nothing_is_refused_rather_than_repeated_for_ever(size):
    with pytest.raises(ShapeError, match=f"batch size {size}"):
        next(in_batches([1], size, lambda batch: batch))
