"""Masks and reviews by arithmetic, the report of a made-up grid, and the whole experiment on a tiny model."""

import dataclasses
import json
import shutil

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.__main__ import main
from experiments.grid import report, reviews, run
from experiments.grid.report import PROJECT_MIB, caption, cells_table, order_table, plot_grid, project_table
from experiments.grid.results import AFTER, BEFORE, DENSE, FP32, INT8, Cell, Control, Grid, Linears, Tuning, front
from experiments.grid.reviews import find_reviews
from experiments.grid.sparsity import (
    LINEARS,
    RULES,
    count_zeros,
    export_fp32,
    held_at_zero,
    keep_largest,
    keep_two_of_four,
    masks_of,
    prune_integers,
    prune_linears,
)
from gpt2opt.cli import main as gpt2opt
from gpt2opt.export.openvino import export_ir
from gpt2opt.measure.results import Quality
from gpt2opt.quantize.fake_quant import QuantizedLinear, fake_quantize
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.storage import from_json
from tests.conftest import relative_error, torch_logits

REVIEW = "Review {0}: I saw this film {0} times, and each time its plot of {0} heists in {1} cities made less sense than the last one.\n"


def test_the_smallest_weights_of_a_matrix_leave():
    magnitudes = torch.tensor([[1.0, 5, 2, 8], [7, 3, 6, 4]])
    assert keep_largest(magnitudes, 0.5).int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert keep_largest(torch.ones(10, 7), 0.3).sum() == 49  # ties are cut too
    assert keep_largest(magnitudes, 0).all()


def test_two_of_every_four_inputs_of_an_output_stay():
    magnitudes = torch.tensor([[1.0, 5, 2, 8, 9, 1, 0, 0], [4, 3, 2, 1, 1, 2, 3, 4]])
    assert keep_two_of_four(magnitudes).int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1]]
    kept = keep_two_of_four(torch.randn(12, 32, generator=torch.Generator().manual_seed(0)).abs())
    assert (kept.unflatten(1, (-1, 4)).sum(2) == 2).all()


def test_an_optimizer_does_not_bring_zeros_back(model):
    masks = masks_of(model, RULES["2:4"])
    ids = torch.arange(20)[None]
    weight = model.transformer.h[0].mlp.c_fc.weight
    before = weight.detach().clone()
    with held_at_zero(model, masks):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(2):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
    after = model.transformer.h[0].mlp.c_fc.weight
    keep = masks["h.0.mlp.c_fc"].T
    assert isinstance(after, nn.Parameter)
    assert not after[~keep].any()
    assert (after[keep] != before[keep]).all()
    assert sum(mask.numel() for mask in masks.values()) == 2 * 12 * 96**2


def test_zeros_are_in_the_file_and_the_function_is_that_of_the_model(model, tokenizer, ids, tmp_path):
    with held_at_zero(model, masks_of(model, RULES["magnitude 30%"])):
        pass
    export_fp32(model, tokenizer, tmp_path / "ir")
    weights, zeros = count_zeros(tmp_path / "ir")
    assert weights == 2 * 12 * 96**2
    assert zeros / weights == pytest.approx(0.3, abs=1e-4)
    assert relative_error(load_ir(tmp_path / "ir").logits(ids), torch_logits(model, ids)) < 1e-5


def test_integers_are_pruned_in_a_quantized_file_and_nothing_else_changes(quantized, ids, tmp_path):
    folder, _ = quantized
    prune_integers(folder, tmp_path / "same", lambda _, magnitudes: torch.ones_like(magnitudes, dtype=torch.bool))
    np.testing.assert_allclose(load_ir(tmp_path / "same").logits(ids), load_ir(folder).logits(ids), atol=1e-5)
    seen = {}

    def keep(name, magnitudes):
        seen[name] = magnitudes
        return RULES["2:4"](magnitudes)

    prune_integers(folder, tmp_path / "pruned", keep)
    assert len(seen) == 8
    weights, zeros = count_zeros(tmp_path / "pruned")
    assert zeros / weights >= 0.5  # rounding made some before
    assert count_zeros(folder)[1] / weights < 0.1
    error = relative_error(load_ir(tmp_path / "pruned").logits(ids), load_ir(folder).logits(ids))
    assert 0.05 < error < 2


def test_pruning_every_linear_reaches_the_tied_head_alone(model):
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    found = prune_linears(model)
    embedding = model.transformer.wte.weight
    assert (found.names, found.matrices) == (("lm_head",), 1 + 4 * len(model.transformer.h))
    assert (found.weights, found.parameters) == (embedding.numel(), sum(weight.numel() for weight in before.values()))
    assert found.zeros == found.embedding_zeros == round(found.weights / 2)
    assert model.lm_head.weight is embedding
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert changed == ["transformer.wte.weight"]
    assert embedding[embedding != 0].abs().min() >= before["transformer.wte.weight"][embedding == 0].abs().max()


def test_the_size_that_the_project_gives_is_memory_in_mib():
    with torch.device("meta"):
        gpt2 = GPT2LMHeadModel(GPT2Config())
    parameters = sum(parameter.nbytes for parameter in gpt2.parameters())
    assert parameters == 4 * 124_439_808
    assert (parameters + 12 * (1024**2 + 4)) / 2**20 == PROJECT_MIB  # a mask of one byte per entry and a number, in each layer


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "IMDB Dataset.csv"
    rows = [f'"{REVIEW.format(number, number % 7) * 12}",positive' for number in range(60)]
    path.write_text("review,sentiment\n" + "\n".join(rows))
    return path


def test_reviews_come_from_the_column_of_kaggles_file_and_of_the_formatted_one(csv_file, tmp_path):
    found = find_reviews(str(csv_file))
    assert sum(len(part) for part in (found.fine_tune, found.calibration, found.score)) == 60
    assert found.score[0].text.startswith("Review ")
    formatted = tmp_path / "data.csv"
    formatted.write_bytes(b"text\n" + "\n".join(f"caf\xe9 number {n}, a film" for n in range(40)).encode("iso-8859-1"))
    assert "café number" in find_reviews(str(formatted)).score[0].text


def test_offline_the_documentation_is_named_as_a_stand_in(monkeypatch, csv_file):
    docs = find_reviews(str(csv_file))
    monkeypatch.setattr(reviews, "find_texts", {"docs": docs}.__getitem__)
    monkeypatch.setattr(reviews, "find_snapshot", lambda *_, **__: None)
    monkeypatch.delenv("GPT2OPT_TEXT", raising=False)
    found = find_reviews()
    assert found.stand_in
    assert "as a stand-in for IMDB reviews" in str(found)
    with pytest.raises(ValueError, match="imdb is not in the local cache and the hub did not give it"):
        find_reviews("imdb")


def test_imdb_of_the_cache_is_read(monkeypatch, tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "plain_text").mkdir()
    for split in reviews.SPLITS:
        texts = [REVIEW.format(f"{split} {number}", number) for number in range(40)]
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": [0] * 40}), tmp_path / "plain_text" / f"{split}-0.parquet")
    monkeypatch.setattr(reviews, "find_snapshot", lambda *_, **__: (tmp_path, "local cache"))
    found = find_reviews("imdb")
    assert (found.name, found.origin, found.stand_in) == ("IMDB reviews", "local cache", False)
    assert len(found.fine_tune) + len(found.calibration) + len(found.score) == 80


WRONG = {
    "no such model": (["--model", "./nowhere"], "no directory './nowhere'; name one that holds config.json and model.safetensors"),
    "missing weights": (["--model", "weightless"], "no model.safetensors in weightless"),
    "no such text": (["--text", "films"], "text 'films' is neither a file nor a name that is known; expected imdb, docs"),
    "no such CSV": (["--text", "films.csv"], "can't read 'films.csv' (No such file or directory); expected imdb"),
    "another column": (["--text", "other.csv"], "other.csv has columns stars, title; expected a column 'review'"),
    "an empty CSV": (["--text", "empty.csv"], "empty.csv has no header; expected a column 'review'"),
    "no reviews": (["--text", "hollow.csv"], "column 'review' of hollow.csv holds no reviews"),
    "no rounds": (["--rounds", "0"], "rounds=0, expected at least 1"),
    "no epochs": (["--epochs", "0"], "epochs=0.0, expected more than 0"),
    "nothing to train on": (["--train-bytes", "0"], "train_bytes=0, expected at least 1"),
    "nothing to score": (["--score-bytes", "-1"], "score_bytes=-1, expected at least 1"),
    "a folder of a user's to keep models in": (["--keep", "weightless"], "weightless is not empty and was not written by gpt2opt"),
    "too few heads": (["--model", "four", "--text", "text.txt"], "the model has 4 heads per layer, expected at least 6"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capsys, model_dir, text_file, tokenizer):
    monkeypatch.chdir(tmp_path)
    for name, content in {"other": "stars,title\n5,x\n", "empty": "", "hollow": "review\n \n"}.items():
        (tmp_path / f"{name}.csv").write_text(content)
    (tmp_path / "text.txt").write_text(text_file.read_text())
    shutil.copytree(model_dir, "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    if case == "too few heads":
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=4, n_embd=32, vocab_size=len(tokenizer), n_positions=256)).save_pretrained("four")
        tokenizer.save_pretrained("four")
    arguments, message = WRONG[case]
    given = arguments if "--model" in arguments else ["--model", str(model_dir), *arguments]
    assert main(["grid", *given, "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("gpt2opt:")]) == 1
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def quality(nats_a_token: float, spread: float = 0) -> Quality:
    """Return three documents of 10 tokens; the first and the last differ by twice the spread."""
    return Quality(tuple(10 * (nats_a_token + d) for d in (-spread, 0, spread)), (10, 10, 10), 25, 150, "a text")


def made_up_cell(sparsity, precision, order, nats, size, packed, seconds, zeros=0.0, weights=1000) -> Cell:
    turns = tuple((seconds * slow / 2, seconds * slow / 2) for slow in (1, 1.5, 1.2, 1, 2, 1.1))
    return Cell(sparsity, precision, order, quality(nats, 1), turns, size, packed, 200_000_000, weights, round(zeros * weights))


@pytest.fixture
def grid() -> Grid:
    """Zeros cost loss and time nothing; heads take a tenth of both; pruning after quantizing costs 0.3 nats more than before."""
    cells = []
    for precision, size, seconds in ((FP32, 40_000_000, 2.0), (INT8, 10_000_000, 1.0)):
        order = BEFORE if precision == INT8 else None
        cells.append(made_up_cell(DENSE, precision, None, 4, size, size - 100, seconds))
        for number, name in enumerate(("heads 17%", "heads 33%"), 1):
            cells.append(made_up_cell(name, precision, order, 4 + number / 10, round(size * (1 - number / 10)), size // 2, 0.9 * seconds))
        for name in RULES:
            cells.append(made_up_cell(name, precision, order, 4.1, size, size // 2, seconds, zeros=0.5))
    cells += [made_up_cell(name, INT8, AFTER, 4.4, 10_000_000, 5_000_000, 1.0, zeros=0.5) for name in RULES]
    controls = tuple(Control(name, quality(4.35, 1), quality(4.4, 1)) for name in RULES)
    facts = {"cpu": "a CPU", "cpu_flags": ["avx2"], "threads": 2}
    stand_ins = ("The bundled GPT-2 is used instead of `gpt2`.",)
    return Grid(
        "2026-01-01", facts, "bundled (from the package)", "docs (from here) abc", stand_ins, Tuning(1, 78, 256), 510_340_000,
        quality(5, 1), controls, tuple(cells),
    )  # fmt: skip


def test_the_projects_table_is_filled_in_its_order_under_its_own_baseline(grid):
    header, rows = project_table(grid).header, project_table(grid).rows
    assert header == ("model", "validation loss", "model size, MB", "inference time, s")
    assert rows[0] == ("Baseline, as the project quantization-pruning gives it", "3.1347", "486.7 (MiB in memory)", "244.6")
    assert rows[1] == ("Baseline: dense, FP32", "4.0000", "40", "2.3")
    assert rows[2] == ("Quantization: dense, INT8", "4.0000", "10 (reduced by 75%)", "1.15 (improved by 50%)")
    assert rows[3] == ("Pruning: heads 17%, FP32", "4.1000", "36 (reduced by 10%)", "2.07 (improved by 10%)")
    assert [row[0].split(":")[0] for row in rows[3:]] == ["Pruning"] * 5 + ["Combined"] * 8
    assert rows[-1][0] == "Combined: INT8, then 2:4"


def test_intervals_pair_documents_and_rounds(grid):
    """A difficult document and a slow round are so for all models, so that their differences have no width."""
    cells = {row[0]: row for row in cells_table(grid).rows}
    assert cells["INT8, then 2:4"][1:6] == (
        "+0.4000 [+0.4000, +0.4000]", "100%, 50.0% zero", "5", "0.50 [0.50, 0.50]", "1.00 [1.00, 1.00]",
    )  # fmt: skip
    assert cells["dense, FP32"][4:6] == ("–", "–")
    twice = cells_table(dataclasses.replace(grid, again_s=grid.base.seconds)).rows[1]
    assert (twice[0], twice[4]) == ("dense, FP32 again", "1.00 [1.00, 1.00]")
    assert order_table(grid).rows[2] == (
        "2:4", "4.1000", "4.4000", "4.3500", "4.4000",
        "+0.3000 [+0.3000, +0.3000]", "+0.0500 [+0.0500, +0.0500]", "+0.0000 [+0.0000, +0.0000]",
    )  # fmt: skip


def test_the_front_holds_what_nothing_beats(grid):
    by_time = front(grid.cells, lambda cell: cell.text_seconds)
    assert [cell.name for cell in by_time] == ["heads 17%, INT8", "dense, INT8"]
    assert [cell.name for cell in front(grid.cells, lambda cell: cell.file_bytes)] == ["heads 33%, INT8", "heads 17%, INT8", "dense, INT8"]


def test_the_caption_says_where_zeros_bring_no_speed(grid):
    said = caption(grid)
    assert said.startswith("**FP32: zeros bring size only in a compressed file and no speed.**")
    assert "take 1.00 × the bytes of the dense model as saved, 0.50 × compressed" in said
    assert "on average 1.00 [1.00, 1.00] × the time (no measurable gain" in said
    assert "heads 33%: 0.80 × the bytes, 0.90 [0.90, 0.90] × the time" in said
    halved = tuple((first / 2, second / 2) for first, second in grid.base.seconds)
    quick = tuple(dataclasses.replace(cell, seconds=halved) if (cell.sparsity in RULES) else cell for cell in grid.cells)
    assert "and speed.** " in caption(dataclasses.replace(grid, cells=quick))
    assert "on average 0.50 [0.50, 0.50] × the time (a measurable gain" in caption(dataclasses.replace(grid, cells=quick))


def test_the_chart_shows_every_cell_once_a_panel_and_hollow_after_quantizing(grid):
    mpl.use("Agg")
    panels = plot_grid(grid)
    assert [axes.get_xlabel() for axes in panels] == [
        "weights as saved, MB", "the same, compressed, MB", "seconds over the validation text",
    ]  # fmt: skip
    for axes in panels:
        points = [line for line in axes.lines if line.get_marker() not in ("None", "_", "|", "", None)]
        assert len(points) == 15
        assert sum(line.get_markerfacecolor() == "white" for line in points) == 3
    assert max(line.get_ydata()[0] for line in points) == pytest.approx(0.4)
    assert "bundled model" in panels[0].figure.get_suptitle()
    assert "(stand-ins)" in panels[0].figure.get_suptitle()


def test_the_caption_says_what_the_projects_own_pruning_reaches(grid):
    cells = (*grid.cells, *(made_up_cell(LINEARS, FP32, None, 4.25, 40_000_000, 30_000_000, 2.0),))
    said = caption(dataclasses.replace(grid, cells=cells, linears=Linears(("lm_head",), 25, 300, 150, 150, 1000)))
    assert "In this GPT-2 that is 1 of 25 matrices (lm_head), 30% of the parameters: the others are `Conv1D`, and 0.0% of their" in said
    assert "Of the token embedding, which is the same tensor as a tied head, 50% became zero." in said
    assert "costs +0.2500 [+0.2500, +0.2500] nats per token, and takes 1.00 × the bytes and 1.00 [1.00, 1.00] × the time" in said
    assert "own pruning" not in caption(grid)  # of an older result, which has no such row
    assert caption(grid).split("\n\n")[0] == said.split("\n\n")[0]  # it is neither among the zeros nor among the heads there


def round_weights(model, tokenizer, calibration, folder) -> None:
    """Write INT8 weights in no time; `quantize_int8` takes seconds for each model."""
    linear = prepare_for_export(model)
    weights = {name: module.weight.detach() for name, module in linear.named_modules() if isinstance(module, nn.Linear)}
    scales = {name: weight.abs().amax(1, keepdim=True) / 127 for name, weight in weights.items()}
    quantized = {name: QuantizedLinear((weight / scales[name]).round() * scales[name], scales[name]) for name, weight in weights.items()}
    export_ir(fake_quantize(linear, quantized), tokenizer, folder)


@pytest.mark.slow
def test_grid_of_a_tiny_model(model_dir, text_file, tmp_path, monkeypatch, capsys):
    for module in (run, report):
        monkeypatch.setattr(module, "RULES", {"2:4": RULES["2:4"]})
    monkeypatch.setattr(run, "HEAD_FRACTIONS", (1 / 3,))
    monkeypatch.setattr(run, "quantize_int8", round_weights)
    kept = tmp_path / "kept"
    found = run.run_grid(str(model_dir), str(text_file), rounds=2, epochs=2, train_bytes=8_000, score_bytes=3_000, keep=str(kept))
    assert [cell.name for cell in found.cells] == [
        "dense, FP32", "dense, INT8", "heads 33%, FP32", "heads 33%, INT8", "2:4, FP32", "2:4, INT8",
        "nn.Linear 50%, FP32", "nn.Linear 50%, INT8", "INT8, then 2:4",
    ]  # fmt: skip
    assert len({cell.quality.document_nats for cell in found.cells}) == 9
    assert found.tuning.epochs == 2
    assert found.linears.names == ("lm_head",)
    for cell in found.cells:
        assert (0.5 <= cell.zeros / cell.weights < 0.6) == (cell.sparsity == "2:4")
        assert cell.compressed_bytes < cell.file_bytes
        assert len(cell.seconds) == 2
        assert min(map(min, cell.seconds)) > 0
    assert found.cell("heads 33%", FP32).weights < found.base.weights
    assert found.cell(DENSE, INT8).file_bytes < 0.5 * found.base.file_bytes
    assert found.base.quality.nll_nats < found.untuned.nll_nats
    assert [control.sparsity for control in found.controls] == ["2:4"]
    assert len(found.again_s) == 2
    assert from_json(Grid, json.loads(json.dumps(dataclasses.asdict(found)))) == found
    assert "zeros bring" in caption(found)
    folders = sorted(path.name for path in kept.iterdir() if path.is_dir())
    assert folders == [
        "2-4-fp32", "2-4-int8", "dense-fp32", "dense-int8", "heads-33-fp32", "heads-33-int8", "int8-2-4",
        "nn-linear-50-fp32", "nn-linear-50-int8",
    ]  # fmt: skip
    capsys.readouterr()
    for folder in folders:
        assert gpt2opt(["generate", str(kept / folder), "--prompt", "a film", "--max-new-tokens", "2"]) == 0
        assert gpt2opt(["perplexity", str(kept / folder), "--text", str(text_file)]) == 0
    assert capsys.readouterr().out.count('"perplexity":') == len(folders)
