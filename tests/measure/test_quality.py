import math

import pytest
import torch
import torch.nn.functional as F

from gpt2opt.measure.quality import COURSE, Protocol, ScoredText, measure_agreement, perplexity, prepare_text, windows
from gpt2opt.measure.results import Quality
from tests.other_tokenizers import OTHERS

VOCAB = 50
SENTENCE = "Node 1 of graph 2 has 3 edges, and a path leads from it. "


def uniform(ids):
    return torch.zeros(*ids.shape, VOCAB)


def of(model):
    @torch.inference_mode()
    def logits(rows):
        return model(rows).logits

    return logits


def as_text(ids, window=16, stride=None, documents=1):
    """Return ids as they are, as a text in documents of one length."""
    ids = torch.tensor(ids)
    owners = torch.arange(len(ids)) * documents // len(ids)
    return ScoredText(((ids, owners),), 10, 100, window, stride or window, f"test | window {window}, stride {stride}")


def score(logits, ids, window=16, stride=None, **options):
    return perplexity(logits, as_text(ids, window, stride), **options)


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (100, 100), (7, 1)])
def test_uniform_logits_have_the_perplexity_of_the_vocabulary(window, stride):
    quality = score(uniform, list(range(40)), window, stride)
    assert quality.perplexity == pytest.approx(VOCAB, rel=1e-6)
    assert quality.num_tokens == 39
    assert quality.word_perplexity == pytest.approx(VOCAB**3.9, rel=1e-5)


@pytest.mark.parametrize(("tokens", "window", "stride"), [(2, 8, 8), (9, 8, 8), (10, 8, 8), (100, 8, 3), (17, 8, 8)])
def test_windows_score_every_token_but_the_first_once(tokens, window, stride):
    plan = list(windows(tokens, window, stride))
    targets = [target for _, end, first in plan for target in range(first, end + 1)]
    assert targets == list(range(1, tokens))
    assert all(end - start <= window for start, end, _ in plan)


def test_perplexity_equals_a_direct_computation(model, tokenizer):
    text = prepare_text(tokenizer, [SENTENCE * 4], "test", Protocol("short", window=20))
    ids = tokenizer(SENTENCE * 4).input_ids
    nats = 0.0
    for start in range(0, len(ids) - 1, 20):
        row = torch.tensor([ids[start : start + 21]])
        nats += F.cross_entropy(of(model)(row[:, :-1])[0], row[0, 1:], reduction="sum").item()
    quality = perplexity(of(model), text)
    assert quality.perplexity == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
    scored = (SENTENCE * 4).removeprefix(tokenizer.decode(ids[0]))  # nothing predicts the first token
    assert quality.word_perplexity == pytest.approx(math.exp(nats / len(scored.split())), rel=1e-5)
    assert quality.bits_per_byte == pytest.approx(nats / math.log(2) / len(scored.encode()), rel=1e-5)


@pytest.mark.parametrize("window", [4, 16, 512])
def test_bytes_and_words_are_those_of_the_tokens_that_are_scored(tokenizer, window):
    lines = ["Node 1 of graph 2 has 3 edges, and a path leads from it.", "", "Grüße von Node 7 of graph 2."]
    text = prepare_text(tokenizer, ["\n".join(lines)], "test", Protocol("lines", window=window, by_line=True))
    kept = [tokenizer(line).input_ids[1:window] for line in ("\n".join(lines)).splitlines(keepends=True) if line.strip()]
    expected = [tokenizer.decode(ids) for ids in kept]
    if "\ufffd" not in "".join(expected):  # cut within a letter
        assert text.num_bytes == sum(len(part.encode()) for part in expected)
    assert text.num_words == sum(len(part.split()) for part in expected)
    quality = perplexity(lambda ids: torch.zeros(*ids.shape, len(tokenizer)), text)
    assert quality.num_tokens == sum(map(len, kept))


def test_a_text_without_spaces_has_no_perplexity_per_word(tokenizer):
    quality = perplexity(lambda ids: torch.zeros(*ids.shape, len(tokenizer)), prepare_text(tokenizer, ["Node" * 400], "test"))
    assert quality.word_perplexity is None
    assert quality.bits_per_byte > 0


def test_perplexity_is_that_of_the_evaluation_harness(model, tokenizer):
    """lm-evaluation-harness reads windows that follow each other by one token of context, the first of them end-of-text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model.config._name_or_path = "local"
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1, max_length=64)
    text = "".join(f"Node {n} of graph {n % 7} has {n % 11} edges. " for n in range(60))
    (nats,) = theirs.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    ours = perplexity(of(model), prepare_text(tokenizer, [tokenizer.eos_token + text], "test", Protocol("theirs", window=64)))
    assert ours.num_tokens == len(tokenizer(text).input_ids) > 64
    # Their last window reaches back over text that is scored already, ours begins where the one before it ended.
    assert ours.nll_nats == pytest.approx(-nats, rel=1e-3)


def test_batch_size_does_not_change_the_result(model, tokenizer):
    ids = tokenizer(SENTENCE * 8).input_ids
    one, five = (score(of(model), ids, 20, batch_size=size) for size in (1, 5))
    assert one.perplexity == pytest.approx(five.perplexity, rel=1e-6)
    assert one.num_tokens == five.num_tokens == len(ids) - 1


def test_no_more_than_one_batch_of_logits_is_held(tokenizer):
    import weakref

    held, most = weakref.WeakSet(), 0

    def logits(rows):
        nonlocal most
        out = torch.zeros(*rows.shape, len(tokenizer))
        held.add(out)
        most = max(most, len(held))
        return out

    perplexity(logits, prepare_text(tokenizer, [SENTENCE * 40], "test", Protocol("short", window=16)))
    assert most <= 2  # the last one may live until its name is bound again


def test_a_prediction_that_is_right_costs_nothing_and_a_shift_would_show():
    ids = [1, 2, 3, 4] * 10

    def knows_the_next(rows):
        return 100.0 * F.one_hot(rows % 4 + 1, VOCAB).float()

    assert score(knows_the_next, ids).perplexity == pytest.approx(1.0, abs=1e-6)


def test_tokens_are_counted_to_the_document_they_stand_in(tokenizer):
    documents = [SENTENCE, SENTENCE * 3, "Node 4."]
    text = prepare_text(tokenizer, documents, "test")
    quality = perplexity(lambda ids: torch.zeros(*ids.shape, len(tokenizer)), text)
    ids = tokenizer("\n\n".join(documents)).input_ids
    assert sum(quality.document_tokens) == len(ids) - 1
    first, second = (len(tokenizer("\n\n".join(documents[:count]) + "\n\n").input_ids) for count in (1, 2))
    assert quality.document_tokens == (first - 1, second - first, len(ids) - second)
    assert "documents joined by blank lines | standard: window 256, stride 256" in quality.protocol
    assert f"{len(ids) - 1} of {len(ids)} tokens scored" in quality.protocol


def test_the_course_reads_each_line_for_itself_and_cuts_it(model, tokenizer):
    lines = ["", SENTENCE.strip(), " \n", "Node 1.\n", "x"]
    text = prepare_text(tokenizer, lines, "test", Protocol("course", window=12, by_line=True))
    nats = tokens = 0
    for line in lines:
        row = torch.tensor([tokenizer(line).input_ids[:12]], dtype=torch.int64)
        if line.strip() and row.shape[1] > 1:
            nats += F.cross_entropy(of(model)(row)[0, :-1], row[0, 1:], reduction="sum").item()
            tokens += row.shape[1] - 1
    quality = perplexity(of(model), text)
    assert quality.num_tokens == tokens
    assert quality.nll_nats == pytest.approx(nats, rel=1e-5)
    assert COURSE.by_line
    assert COURSE.window == 512


@pytest.mark.parametrize("documents", [[], [""], ["x"]])
def test_a_text_without_two_tokens_in_a_row_is_refused(tokenizer, documents):
    with pytest.raises(ValueError, match="test has no two tokens in a row"):
        prepare_text(tokenizer, documents, "test")


@pytest.mark.parametrize("by_line", [True, False])
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_tokens_that_a_tokenizer_would_add_are_not_scored(make, by_line):
    """The text is one line that is cut, and many that are whole: an added token has no bytes, and its nats would stand beside none."""
    tokenizer, lines = make(), ["river stone bright quiet engine " * 8, *["light small city."] * 30]
    text = prepare_text(tokenizer, ["\n".join(lines)], "test", Protocol("either", window=32, by_line=by_line))
    added = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert not {token for ids, _ in text.sequences for token in ids.tolist()} & added
    quality = perplexity(lambda ids: torch.zeros(*ids.shape, len(tokenizer)), text)
    assert quality.bits_per_byte == pytest.approx(math.log2(len(tokenizer)) * quality.num_tokens / text.num_bytes)
    assert 0.3 < text.num_bytes / quality.num_tokens < 8


def test_one_character_of_several_tokens_has_no_bits_per_byte(tokenizer):
    assert len(tokenizer("😀").input_ids) > 1
    with pytest.raises(ValueError, match="test has no character behind the first"):
        prepare_text(tokenizer, ["😀"], "test")


def test_a_tokenizer_that_does_not_tell_where_its_tokens_stand_is_refused():
    from transformers import CanineTokenizer

    with pytest.raises(ValueError, match="CanineTokenizer does not say where its tokens are"):
        prepare_text(CanineTokenizer(), [SENTENCE], "test")


def test_nan_logits_give_an_error_and_no_number():
    with pytest.raises(ValueError, match="not finite"):
        score(lambda ids: uniform(ids) * math.nan, list(range(10)))


def test_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="token id 99 is outside the model's 50 tokens"):
        score(uniform, [1, 99, 3])


def test_a_stride_that_would_leave_tokens_out_is_refused(tokenizer):
    with pytest.raises(ValueError, match="stride=17, window=16"):
        prepare_text(tokenizer, [SENTENCE], "test", Protocol("holes", 16, 17))


def test_qualities_of_different_protocols_are_not_divided():
    a, b = (score(uniform, list(range(40)), window) for window in (16, 8))
    with pytest.raises(ValueError, match="can't compare"):
        a.ratio_to(b)


def test_a_paired_interval_is_narrower_than_the_noise_both_share():
    nats = [float(100 + 40 * (i % 7)) for i in range(60)]
    base = Quality(tuple(nats), (50,) * 60, 500, 1000, "p")
    worse = Quality(tuple(n + 0.5 for n in nats), (50,) * 60, 500, 1000, "p")
    low, high = worse.ratio_interval(base)
    assert low <= math.exp(0.01) * 1.0001
    assert high >= math.exp(0.01) * 0.9999
    assert high - low < 1e-6
    wide = base.interval()
    assert wide[0] < base.perplexity < wide[1]
    assert wide[1] - wide[0] > 0.1


def test_one_document_has_no_interval():
    quality = score(uniform, list(range(40)))
    assert quality.interval() is None
    assert quality.ratio_interval(quality) is None


def agree(logits, reference, ids=tuple(range(40)), window=16, stride=None, documents=1):
    return measure_agreement(logits, reference, as_text(list(ids), window, stride, documents), reference_name="reference")


def test_a_model_agrees_with_itself():
    quality, found = agree(uniform, uniform)
    assert found.mean_kl == 0
    assert found.top1 == 1
    assert sum(found.document_tokens) == 39
    assert quality.perplexity == pytest.approx(VOCAB)


@pytest.mark.parametrize("stride", [16, 5])
def test_agreement_is_the_kl_divergence_from_the_parent(stride):
    """Of a fair coin against one that shows heads nine times in ten: KL(fair ‖ biased) = ½ ln(0.5/0.9) + ½ ln(0.5/0.1)."""
    fair = torch.tensor([0.5, 0.5]).log()
    biased = torch.tensor([0.1, 0.9]).log()

    def coin(probabilities):
        return lambda ids: probabilities.expand(*ids.shape, 2)

    _, found = agree(coin(biased), coin(fair), [0, 1] * 20, stride=stride, documents=4)
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert found.mean_kl == pytest.approx(expected, rel=1e-6)
    assert found.kl_p99 == pytest.approx(expected, rel=1e-6)
    assert found.mean_kl_interval() == pytest.approx((expected, expected), rel=1e-6)
    assert found.kl_p99_interval == pytest.approx((expected, expected), rel=1e-6)
    assert sum(found.document_tokens) == 39
    assert found.top1 == 0  # the fair coin's first is 0, the biased one's 1


def test_the_99th_percentile_and_its_interval_are_over_documents():
    """One document in ten is ten times as far off; the interval reaches down to what the others have."""

    def reference(ids):
        return torch.zeros(*ids.shape, VOCAB)

    def off(ids):
        shift = torch.where(ids // 10 == 3, 3.0, 0.1)
        return torch.cat([shift[..., None], torch.zeros(*ids.shape, VOCAB - 1)], -1)

    _, found = agree(off, reference, range(49), window=48, documents=7)
    assert found.kl_p99 > 10 * found.mean_kl / 7
    assert found.kl_p99_interval[0] < found.kl_p99 / 10
    assert found.kl_p99_interval[1] == pytest.approx(found.kl_p99)


def test_models_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="50 and 51 tokens; only models of one vocabulary"):
        agree(uniform, lambda ids: torch.zeros(*ids.shape, VOCAB + 1))
    with pytest.raises(ValueError, match="not finite"):
        agree(lambda ids: torch.full((*ids.shape, VOCAB), math.nan), uniform)
    with pytest.raises(ValueError, match="the reference model gave logits that are not finite"):
        agree(uniform, lambda ids: torch.full((*ids.shape, VOCAB), math.nan))
