"""A compiled graph whose input tensors stay bound from call to call: setting eight of them again for every token would cost time."""

import numpy as np
import openvino

from gpt2opt.runtime.kv_cache import KvCache


class BoundGraph:
    """One infer request. inputs: name -> the array that its tensor shares memory with. cache: the KV cache that is bound now."""

    def __init__(self, compiled: openvino.CompiledModel):
        self.request = compiled.create_infer_request()
        self.inputs: dict[str, np.ndarray] = {}
        self.cache: KvCache | None = None

    def run(self, cache: KvCache, inputs: dict[str, np.ndarray]) -> openvino.Tensor:
        """Run the graph on a cache; return its output, which the next call overwrites. See `page_kv_cache` for the inputs."""
        self.bind_cache(cache)
        self.bind(inputs)
        self.request.infer(share_outputs=True)
        return self.request.get_output_tensor()

    def bind(self, inputs: dict[str, np.ndarray]) -> None:
        """Write these inputs into the bound tensors; one of another shape gets a new tensor."""
        for name, value in inputs.items():
            if name in self.inputs and self.inputs[name].shape == value.shape:
                self.inputs[name][...] = value
            else:
                self.inputs[name] = value.astype(self.request.get_tensor(name).element_type.to_dtype())  # a copy: it is written to
                self.request.set_tensor(name, openvino.Tensor(self.inputs[name], shared_memory=True))

    def bind_cache(self, cache: KvCache) -> None:
        if self.cache is not cache:
            for name, tensor in cache.tensors.items():
                self.request.set_tensor(name, tensor)
            self.cache = cache
