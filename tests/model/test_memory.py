"""Memory that runs out, faked."""

from __future__ import annotations

import weakref

import pytest
import torch

from headscope.errors import ArgumentError, MemoryRanOut, ShapeError
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
        MemoryRanOut, match="memory ran out with a single prompt in the batch; use shorter prompts"
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


# ---- batches within batches


def nested(capacity, size):
    """Outer batches of prompts, and of each inner batches of worlds; a pass fits `capacity` prompts times worlds."""
    tried = []

    def outer(prompts):
        def inner(worlds):
            tried.append((len(prompts), len(worlds)))
            if len(prompts) * len(worlds) > capacity:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return [(world, prompt) for world in worlds for prompt in prompts]

        return [pair for _, pairs in in_batches(range(3), 3, inner) for pair in pairs]

    pairs = [pair for _, found in in_batches(range(4), size, outer) for pair in found]
    return tried, pairs


EVERY_PAIR = sorted((world, prompt) for world in range(3) for prompt in range(4))


def test_where_one_inner_item_is_too_much_the_outer_batch_is_halved():
    # A pass fits 2. 4 prompts: with 3 worlds and with 1 too many. 2 prompts: 3 worlds too many, then 1, 1, 1; twice.
    tried, pairs = nested(2, size=4)
    assert tried == [(4, 3), (4, 1), (2, 3), (2, 1), (2, 1), (2, 1), (2, 3), (2, 1), (2, 1), (2, 1)]
    assert sorted(pairs) == EVERY_PAIR


def test_the_inner_batch_is_halved_first():
    # A pass fits 4: 4 prompts with one world each time, the outer batch stays whole.
    tried, pairs = nested(4, size=4)
    assert tried == [(4, 3), (4, 1), (4, 1), (4, 1)]
    assert sorted(pairs) == EVERY_PAIR


def test_where_one_of_each_is_too_much_it_is_the_user_s_to_mend():
    with pytest.raises(MemoryRanOut, match="memory ran out with a single prompt") as caught:
        nested(0, size=4)
    assert "\n" not in str(caught.value)


def test_memory_that_ran_out_within_counts_as_memory_that_ran_out():
    assert out_of_memory(MemoryRanOut("memory ran out with a single prompt in the batch"))
    assert not out_of_memory(ShapeError("period < 3"))
    assert not issubclass(MemoryRanOut, ArgumentError)  # no argument is wrong: a larger machine takes it


def test_another_refusal_within_passes_through_at_once():
    tried = []

    def run(batch):
        tried.append(len(batch))
        raise ShapeError("the corpus is too short")

    with pytest.raises(ShapeError, match="the corpus is too short"):
        list(in_batches([1, 2], 2, run))
    assert tried == [2]
