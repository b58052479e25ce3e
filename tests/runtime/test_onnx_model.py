"""The ONNX export computes what torch computes, with and without the cache, pruned and not, alone and in batches of unequal prompts."""

import numpy as np
import pytest
import torch

from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.export.onnx import export_onnx
from gpt2opt.runtime import onnx_model
from gpt2opt.runtime.onnx_model import load_onnx
from gpt2opt.torch_model import TorchModel
from tests.conftest import make_model


@pytest.fixture(scope="module")
def whole(tokenizer):
    return make_model(tokenizer)


@pytest.fixture(scope="module", params=["whole", "pruned"])
def pair(request, tokenizer, tmp_path_factory):
    """The torch model and its export."""
    source = request.getfixturevalue(request.param)
    folder = export_onnx(source, tokenizer, tmp_path_factory.mktemp("onnx") / "model")
    return source, load_onnx(folder, 1)


@pytest.fixture
def prompts(calibration) -> list[list[int]]:
    rows = calibration["input_ids"]
    return [rows[0][:20], rows[1][:3], rows[2][:32], rows[3][:1]]


@torch.inference_mode()
def logits_behind(source, text: list[int]) -> np.ndarray:
    """Return torch's logits behind a text, read at once."""
    return source(torch.tensor([text]), use_cache=False).logits[0, -1].numpy()


def test_logits_are_those_of_torch_with_and_without_the_cache(pair, prompts):
    source, model = pair
    for prompt in prompts:
        whole = model.decoder([prompt]).prefill()
        np.testing.assert_allclose(whole[0], logits_behind(source, prompt), atol=1e-3)
        token_by_token = model.decoder([prompt[:1]])
        logits = token_by_token.prefill()
        for token in prompt[1:]:
            logits = token_by_token.decode(np.array([[token]]))
        np.testing.assert_allclose(logits, whole, atol=1e-3)


def test_unequal_prompts_stay_right_while_sequences_leave_and_are_copied(pair, prompts):
    source, model = pair
    decoder = model.decoder(prompts)
    texts = [list(prompt) for prompt in prompts]
    logits = decoder.prefill()
    for kept in ([0, 1, 2, 3], [3, 0, 1], [0, 0, 2], [1, 2], [1]):
        for row, text in enumerate(texts):
            np.testing.assert_allclose(logits[row], logits_behind(source, text), atol=1e-3)
        decoder.keep(kept)
        texts = [list(texts[row]) for row in kept]
        for text in texts:
            text.append(len(text) + 7)
        logits = decoder.decode(np.array([[text[-1]] for text in texts]))
        # What is left of the padding is what the longest of those that stay does not need.
        assert decoder.mask.shape[1] == max(len(text) for text in texts)


def test_the_loop_chooses_the_tokens_that_it_chooses_with_torch(pair, prompts):
    source, model = pair
    settings = DecodingSettings(max_new_tokens=24, do_sample=True, temperature=1.2, seed=3)
    expected = generate(TorchModel(source), prompts, settings)
    assert [each.ids for each in generate(model, prompts, settings)] == [each.ids for each in expected]


def test_the_cache_stays_in_the_runtime_and_grows_by_what_is_read(pair, prompts):
    """IO binding: what one call returns is what the next one gets, the same memory, whatever its size."""
    _, model = pair
    decoder = model.decoder(prompts[:1])
    decoder.prefill()
    given = []

    class Noting:
        def __init__(self, binding):
            self.binding = binding

        def bind_ortvalue_input(self, name, value):
            given.append(value.data_ptr())
            self.binding.bind_ortvalue_input(name, value)

        def __getattr__(self, name):
            return getattr(self.binding, name)

    class Session:
        def io_binding(self):
            return Noting(real.io_binding())

        def run_with_iobinding(self, noting):
            real.run_with_iobinding(noting.binding)

    real, model.session = model.session, Session()
    try:
        before = [value.data_ptr() for value in decoder.cache.values()]
        decoder.decode(np.array([[5]]))
    finally:
        model.session = real
    assert given == before
    assert {value.shape()[2] for value in decoder.cache.values()} == {len(prompts[0]) + 1}


def test_the_export_leaves_the_model_as_it_was(whole, tokenizer, tmp_path):
    ids = torch.arange(12)[None]
    export_onnx(whole, tokenizer, tmp_path / "out")
    assert whole(ids).logits.shape[:2] == (1, 12)


def test_what_does_not_fit_is_refused_at_once(pair, prompts):
    _, model = pair
    with pytest.raises(ValueError, match="the prompt has 32 tokens; with 230 new ones"):
        model.decoder(prompts, 230)
    decoder = model.decoder([[1] * model.context])
    decoder.prefill()
    with pytest.raises(ValueError, match="the prompt has 257 tokens"):
        decoder.decode(np.array([[1]]))


def test_a_folder_without_an_export_or_with_a_damaged_one_is_named(model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_onnx(tmp_path)
    with pytest.raises(ValueError, match=r"no model\.onnx in "):
        load_onnx(model_dir)
    (tmp_path / "config.json").write_text((model_dir / "config.json").read_text())
    (tmp_path / "model.onnx").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="export the model again"):
        load_onnx(tmp_path)


def test_a_failed_export_leaves_nothing(whole, tokenizer, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no space")

    monkeypatch.setattr("optimum.exporters.onnx.onnx_export_from_model", fails)
    with pytest.raises(RuntimeError, match="no space"):
        export_onnx(whole, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_is_one_line(monkeypatch, model_dir):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError) as raised:
        load_onnx(model_dir)
    assert str(raised.value) == onnx_model.MISSING
