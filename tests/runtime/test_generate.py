"""Text from an IR directory: with this runtime, which loads no torch, and with others that load the same directory."""

import json
import subprocess
import sys

import numpy as np
import openvino
import openvino_genai
import pytest
import torch
from optimum.intel import OVModelForCausalLM

from gpt2opt.runtime.compile import PROPERTIES, cpu_properties
from gpt2opt.runtime.ir_model import load_ir
from tests.conftest import continue_text, greedy_tokens


def test_text_is_continued(quantized):
    assert isinstance(continue_text(quantized[0], "Node 1 of", 5), str)
    with pytest.raises(ValueError, match="the prompt is empty"):
        continue_text(quantized[0], "", 5)
    with pytest.raises(ValueError, match="character 2 of the prompt is not text"):
        continue_text(quantized[0], "a \udcff", 5)  # what a shell makes of a byte that is not UTF-8


def test_generating_from_the_ir_loads_no_torch_and_no_numba(quantized):
    """The RAM of INT8 is measured on such a process, with openvino, numpy and the LLVM that loads the decode step."""
    code = (
        "import json, sys; from gpt2opt.runtime.ir_model import generate_from_ir; list(generate_from_ir(sys.argv[1], [1, 2, 3], 2));"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(quantized[0])], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert "openvino" in modules
    assert not {"torch", "numba"} & set(modules)


def test_a_prompt_beyond_the_context_is_refused_or_cut_and_said_so(quantized, caplog):
    model = load_ir(quantized[0])
    with pytest.raises(ValueError, match="257 tokens; with 0 new ones, from 1 to 256 fit"):
        model.logits(np.ones((1, 257), dtype=np.int64))
    with pytest.raises(ValueError, match="250 tokens; with 7 new ones, from 1 to 249 fit"):
        greedy_tokens(model, np.ones((1, 250), dtype=np.int64), 7)
    with pytest.raises(ValueError, match="256 new tokens don't fit into the context of 256; ask for at most 255"):
        greedy_tokens(model, np.ones((1, 1), dtype=np.int64), 256)
    prompt = "Node 1 of graph 2 has 3 edges"
    with pytest.raises(ValueError, match="from 1 to 6 fit into the context of 256"):
        continue_text(quantized[0], prompt, 250)
    assert isinstance(continue_text(quantized[0], prompt, 250, truncate=True), str)
    assert "its last 6 are kept" in caplog.text


def test_optimum_loads_a_float_directory_and_generates_the_same(float_dir, ids):
    prompt = torch.from_numpy(ids[:1, :8])
    model = OVModelForCausalLM.from_pretrained(float_dir, ov_config=cpu_properties())
    model.generation_config.eos_token_id = None
    theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert theirs[0, 8:].tolist() == greedy_tokens(load_ir(float_dir), prompt.numpy(), 12)[0].tolist()


def test_optimum_and_genai_load_an_int8_directory_and_generate(quantized, ids):
    prompt = torch.from_numpy(ids[:1, :8])
    theirs = OVModelForCausalLM.from_pretrained(quantized[0], ov_config=PROPERTIES)
    theirs.generation_config.eos_token_id = None
    out = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 14)
    for backend in ("SDPA", "PA"):
        pipeline = openvino_genai.LLMPipeline(str(quantized[0]), "CPU", ATTENTION_BACKEND=backend)
        config = openvino_genai.GenerationConfig(max_new_tokens=6, ignore_eos=True, do_sample=False)
        result = pipeline.generate(openvino.Tensor(prompt.numpy()), config)
        assert len(result.tokens[0]) == 6
