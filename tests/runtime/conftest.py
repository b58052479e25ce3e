"""Both forms of the graphs, whatever CPU runs the tests."""

import pytest


@pytest.fixture(params=[True, False], ids=["dot product", "no dot product"])
def either_cpu(request, monkeypatch):
    """Take the graphs for a CPU with INT8 dot products, or those for one without; return whether they are the former."""
    monkeypatch.setattr("gpt2opt.runtime.compile.has_int8_dot_product", lambda: request.param)
    return request.param
