import os

import pytest
import torch

from gpt2opt.measure.memory import in_fresh_process, peak_vram


def hold(num_bytes: int) -> int:
    block = bytearray(num_bytes)
    block[::4096] = b"x" * len(block[::4096])
    return len(block)


def process_id() -> int:
    return os.getpid()


def fail() -> None:
    raise KeyError("the reason")


def die() -> None:
    os._exit(9)


def test_200_megabytes_read_as_200_megabytes():
    size = 200_000_000
    run = in_fresh_process(hold, size)
    assert run.value == size
    assert run.peak_rss_bytes - run.start_rss_bytes == pytest.approx(size, rel=0.1)


def test_the_parents_own_memory_is_not_counted():
    ballast = bytearray(300_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    small, _ = in_fresh_process(hold, 1000), ballast
    assert small.peak_rss_bytes - small.start_rss_bytes < 20_000_000


def test_the_process_is_another():
    assert in_fresh_process(process_id).value != os.getpid()


def test_an_error_in_the_child_is_raised_with_its_reason():
    with pytest.raises(RuntimeError, match=r"fail failed in a fresh process(.|\n)*the reason"):
        in_fresh_process(fail)


def test_a_child_that_dies_is_reported():
    with pytest.raises(RuntimeError, match="exit code 9"):
        in_fresh_process(die)


def test_vram_is_not_measured_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = []
    assert peak_vram(lambda: done.append(True)) is None
    assert done
