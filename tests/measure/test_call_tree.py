import pytest

from gpt2opt.measure.call_tree import FRAME, KERNEL, NOBODY, OPERATOR, RUNTIME, Node, call_tree, operator_table, recorded
from gpt2opt.report.profile.summary import memory_curves, thinned
from tests.report.profile.conftest import allocation, cpu_events, event, gpu_events


def find(root: Node, *names: str) -> Node:
    for name in names:
        (root,) = (child for child in root.children.values() if child.name == name)
    return root


def test_layers_are_one_node_and_only_modules_and_our_functions_are_frames():
    root = call_tree(recorded(cpu_events()))
    assert [child.name for child in root.children.values()] == ["prefill (torch_model.py)", "decode (torch_model.py)"]
    prefill = find(root, "prefill (torch_model.py)")
    assert [(child.name, child.kind, child.calls, child.cpu_us) for child in prefill.children.values()] == [("Conv1D", FRAME, 2, 50)]
    matmul = find(prefill, "Conv1D", "aten::addmm")
    assert (matmul.kind, matmul.calls, matmul.cpu_us, matmul.own_cpu_us) == (OPERATOR, 2, 46, 42)
    assert prefill.own_cpu_us == 10


def test_what_lies_outside_of_the_steps_is_not_in_the_tree_unless_there_are_none():
    root = call_tree(recorded(cpu_events()))
    assert (root.calls, root.cpu_us, root.own_cpu_us) == (1, 100, 10)
    assert "aten::before" not in {node.name for node in root.walk()}
    without = [each for each in cpu_events() if not each["name"].startswith("ProfilerStep")]
    assert "aten::before" in {node.name for node in call_tree(recorded(without)).walk()}


def test_own_times_add_up_to_the_whole():
    root = call_tree(recorded(cpu_events()))
    assert sum(node.own_cpu_us for node in root.walk()) == pytest.approx(root.cpu_us)


def test_calls_that_follow_each_other_do_not_nest_by_rounding():
    root = call_tree([event("a", 0, 10.004), event("b", 10.003, 5), event("c", 15.002, 5)])
    assert [(node.name, node.own_cpu_us) for node in root.children.values()] == [("a", 10.004), ("b", 5), ("c", 5)]


def test_threads_do_not_nest_in_each_other():
    events = [event("aten::mm", 0, 100, thread=1), event("aten::add", 10, 20, thread=2)]
    assert {node.name for node in call_tree(events).children.values()} == {"aten::mm", "aten::add"}


def test_gpu_work_belongs_to_the_operator_that_started_it_and_to_all_that_called_it():
    root = call_tree(recorded(gpu_events()))
    matmul = find(root, "prefill (torch_model.py)", "Conv1D", "aten::addmm")
    kernel = find(matmul, "gemm_kernel")
    assert (kernel.kind, kernel.calls, kernel.gpu_us, kernel.cpu_us) == (KERNEL, 2, 80, 0)
    assert (matmul.gpu_us, matmul.own_gpu_us) == (80, 0)
    assert find(matmul, "aten::copy_", "cudaLaunchKernel").kind == RUNTIME
    assert find(root, NOBODY, "Memcpy HtoD").gpu_us == 5
    assert root.gpu_us == 85


def test_the_table_sums_an_operator_over_all_its_places():
    rows = {row.name: row for row in operator_table(call_tree(recorded(gpu_events())))}
    assert set(rows) == {"aten::addmm", "aten::copy_", "aten::add", "cudaLaunchKernel", "gemm_kernel", "Memcpy HtoD", NOBODY}
    assert (rows["aten::addmm"].calls, rows["aten::addmm"].cpu_us, rows["aten::addmm"].own_cpu_us) == (2, 46, 42)
    assert (rows["gemm_kernel"].own_gpu_us, rows["aten::addmm"].gpu_us, rows["aten::addmm"].own_gpu_us) == (80, 80, 0)
    assert operator_table(call_tree(recorded(cpu_events())))[0].name == "aten::addmm"


def test_of_an_operator_that_calls_itself_the_outermost_call_is_the_total():
    events = [event("aten::to", 0, 100), event("aten::_to_copy", 10, 80), event("aten::to", 20, 40)]
    (to,) = (row for row in operator_table(call_tree(events)) if row.name == "aten::to")
    assert (to.calls, to.cpu_us, to.own_cpu_us) == (2, 100, 60)


def test_memory_is_a_running_sum_for_each_device():
    curves = memory_curves(recorded(gpu_events()))
    assert curves["CPU"] == [(0.0, 0), (5, 1000), (10, 1500), (50, 0), (72, 200)]
    assert curves["GPU 0"] == [(0.0, 0), (6, 4096)]


def test_a_thinned_curve_keeps_its_peak_and_its_ends():
    sizes = [number % 7 for number in range(5000)]
    sizes[3333] = 1000
    curve = memory_curves([allocation(at, size - before) for at, (size, before) in enumerate(zip(sizes, [0, *sizes], strict=False))])["CPU"]
    assert len(curve) <= 400
    assert (3333.0, 1000) in curve
    assert (curve[0], curve[-1]) == ((0.0, 0), (4999.0, sizes[-1]))
    assert thinned(curve[:9]) == curve[:9]
