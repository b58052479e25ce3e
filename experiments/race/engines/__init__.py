"""The engines of the race, a file for each family; the order is that of the tables."""

from experiments.race.engines.base import Engine
from experiments.race.engines.c_translate import CTranslate2
from experiments.race.engines.llama import LlamaCpp
from experiments.race.engines.onnx_runtime import OnnxFp32, OnnxGenAi, OnnxInt8
from experiments.race.engines.openvino import GenAiFp32, GenAiPaged, GenAiSdpa, OpenVinoFp32, OpenVinoInt4, OpenVinoInt8
from experiments.race.engines.ours import Ours, OursByOpenVino, OursPromptLookup, OursUnpruned
from experiments.race.engines.pytorch import TorchBf16, TorchCompile, TorchEagerAttention, TorchFp32, TorchInt8, TorchInt8Compile
from experiments.race.engines.vllm import Vllm, VllmBf16
from gpt2opt.measure.turns import again

ENGINES: tuple[type[Engine], ...] = (
    Ours, OursByOpenVino, OursUnpruned, OursPromptLookup,
    TorchFp32, TorchEagerAttention, TorchBf16, TorchCompile, TorchInt8, TorchInt8Compile, OnnxFp32, OnnxInt8, OnnxGenAi,
    OpenVinoFp32, OpenVinoInt8, OpenVinoInt4, GenAiFp32, GenAiSdpa, GenAiPaged, CTranslate2, LlamaCpp, Vllm, VllmBf16,
)  # fmt: skip
OURS = (again(Ours.name), *(engine.name for engine in ENGINES if issubclass(engine, Ours)))
"""The rows that are no peers."""
