import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2opt.measure import child
from gpt2opt.measure.memory import Metered, Vram, in_fresh_process, peak_ram, peak_vram, read_resident
from gpt2opt.measure.results import Resident

SIZE = 200_000_000


def written(num_bytes: int) -> bytearray:
    block = bytearray(num_bytes)
    block[::4096] = b"x" * len(block[::4096])
    return block


def hold(num_bytes: int) -> int:
    return len(written(num_bytes))


def hold_then_free(num_bytes: int) -> Iterator[str]:
    block = written(num_bytes)
    yield "loaded"
    del block
    yield "steady"


def read_through(path: Path) -> Iterator[str]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert sum(pages[::4096]) == 0
        yield "loaded"


def process_id() -> int:
    return os.getpid()


def fail() -> None:
    raise KeyError("the reason")


def die() -> None:
    os._exit(9)


def growth(run, step: str) -> dict[str, int]:
    """Return how much more of each kind is resident at a step than at the start."""
    before, after = vars(run.steps["start"]), vars(run.steps[step])
    return {name: after[name] - before[name] for name in before}


def test_200_megabytes_read_as_200_megabytes():
    run = in_fresh_process(hold, SIZE)
    assert run.value == SIZE
    assert run.peak_rss_bytes - run.start_rss_bytes == pytest.approx(SIZE, rel=0.1)


def test_the_peak_alone():
    assert peak_ram(hold, SIZE) - peak_ram(hold, 0) == pytest.approx(SIZE, rel=0.1)


def test_what_is_written_is_the_processs_own_and_no_files():
    grown = growth(in_fresh_process(hold_then_free, SIZE), "loaded")
    assert [grown[kind] for kind in ("rss_bytes", "pss_bytes", "uss_bytes")] == pytest.approx([SIZE] * 3, rel=0.1)
    assert abs(grown["file_bytes"]) < 0.05 * SIZE


def test_what_is_freed_before_a_step_shows_in_the_peak_alone():
    run = in_fresh_process(hold_then_free, SIZE)
    assert run.peak_rss_bytes - run.start_rss_bytes == pytest.approx(SIZE, rel=0.1)
    assert growth(run, "steady")["rss_bytes"] < 0.05 * SIZE


def test_a_mapped_file_is_told_apart_and_shared_with_whoever_maps_it(tmp_path):
    path = tmp_path / "weights"
    with open(path, "wb") as file:
        file.write(bytes(SIZE))
        os.fsync(file.fileno())  # weights on disk are clean pages
    alone = growth(in_fresh_process(read_through, path), "loaded")
    assert [alone[kind] for kind in ("rss_bytes", "file_bytes", "uss_bytes")] == pytest.approx([SIZE] * 3, rel=0.1)
    here = read_through(path)
    next(here)
    shared = growth(in_fresh_process(read_through, path), "loaded")
    assert [shared[kind] for kind in ("rss_bytes", "file_bytes", "pss_bytes")] == pytest.approx([SIZE, SIZE, SIZE / 2], rel=0.1)
    assert shared["uss_bytes"] < 0.05 * SIZE
    here.close()


def test_the_parents_own_memory_is_not_counted():
    ballast = written(300_000_000)
    small, _ = in_fresh_process(hold, 1000), ballast
    assert small.peak_rss_bytes - small.start_rss_bytes < 20_000_000


def test_a_child_can_map_no_more_than_its_limit():
    # What a child maps that holds nothing grows with the cores: OpenBLAS maps some 40 MB for the thread of each.
    limit = in_fresh_process(hold, 0).peak_address_space_bytes + 2 * SIZE
    assert in_fresh_process(hold, SIZE, address_space_bytes=limit).peak_address_space_bytes <= limit
    with pytest.raises(RuntimeError, match="MemoryError"):
        in_fresh_process(hold, limit, address_space_bytes=limit)


def test_a_child_that_gets_stuck_under_its_limit_is_given_up(monkeypatch):
    monkeypatch.setattr(child, "LIMITED_S", 1)
    with pytest.raises(RuntimeError, match="sleep gave no answer in 1 s with 800 MB of address space"):
        in_fresh_process(time.sleep, 30, address_space_bytes=4 * SIZE)


def test_the_process_is_another():
    assert in_fresh_process(process_id).value != os.getpid()


def test_an_error_in_the_child_is_raised_with_its_reason():
    with pytest.raises(RuntimeError, match=r"fail failed in a fresh process(.|\n)*the reason"):
        in_fresh_process(fail)


def test_a_child_that_dies_is_reported():
    with pytest.raises(RuntimeError, match="exit code 9"):
        in_fresh_process(die)


def test_nothing_is_made_up_without_proc(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert read_resident() is None


def test_vram_is_not_measured_without_a_gpu():
    import torch  # here, and not above: every child imports this module

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = []
    assert peak_vram(lambda: done.append(True)) is None
    assert done


@pytest.mark.gpu
def test_200_megabytes_of_vram_read_as_200_megabytes():
    import torch

    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    found = peak_vram(lambda: torch.empty(SIZE, dtype=torch.uint8, device="cuda"))
    assert found.allocated_bytes - held == pytest.approx(SIZE, rel=0.1)
    assert found.allocated_bytes <= found.reserved_bytes <= found.device_bytes


def test_vram_of_what_came_before_is_not_counted(monkeypatch):
    """On a stand-in for torch.cuda that counts as it does: the peak stays until it is reset."""
    from torch import cuda

    peak = {"allocated": 900, "reserved": 950}  # of a training before

    def work() -> None:
        peak.update({name: max(peak[name], size) for name, size in (("allocated", 300), ("reserved", 400))})

    stand_ins = {
        "is_available": lambda: True,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: peak.update(allocated=0, reserved=0),
        "max_memory_allocated": lambda: peak["allocated"],
        "max_memory_reserved": lambda: peak["reserved"],
        "mem_get_info": lambda: (4_000, 5_000),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(cuda, name, stand_in)
    assert peak_vram(work) == Vram(allocated_bytes=300, reserved_bytes=400, device_bytes=1_000)


def test_the_peak_is_no_less_than_what_was_read_on_the_way(monkeypatch):
    marks = {"VmHWM": 90, "VmPeak": 200}
    monkeypatch.setattr("gpt2opt.measure.memory._sizes", lambda name: marks)
    monkeypatch.setattr("gpt2opt.measure.memory.read_resident", lambda: Resident(100, 100, 100, 0))
    assert Metered(()).run(int, ()).peak_rss_bytes == 100  # the kernel's mark is kept in batches of pages, and may lag behind
    marks["VmHWM"] = 120
    assert Metered(()).run(int, ()).peak_rss_bytes == 120
    marks.clear()
    assert Metered(()).run(int, ()).peak_rss_bytes is None
