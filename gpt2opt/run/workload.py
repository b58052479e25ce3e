"""What every model of a run is given: the text that is scored, the prompt that is timed, the prompts that are continued."""

from dataclasses import dataclass

from gpt2opt.decoding.text import window_length
from gpt2opt.measure.quality import JOIN, ScoredText, prepare_text
from gpt2opt.run.record import Settings
from gpt2opt.sources.texts import Texts, take_bytes

SAMPLE_PROMPTS, SAMPLE_PROMPT_TOKENS = 20, 32


@dataclass(frozen=True)
class Workload:
    """Made once and of one text, so that all figures of a run compare.

    scored: the held-out part of the text, tokenized. prompt: what every latency and memory measurement reads, the first tokens of that
    text. longest_prompt: as much of it as leaves room for the new tokens; memory grows with the context. samples: prompts of one length,
    evenly spaced over that text, which every model continues.
    """

    scored: ScoredText
    prompt: list[int]
    longest_prompt: list[int]
    samples: list[list[int]]


def make_workload(tokenizer, texts: Texts, settings: Settings) -> Workload:
    """Tokenize the scored part of a text, and cut the prompts out of it.

    Raises:
        ValueError: it holds fewer than two tokens.
    """
    documents = [document.text for document in take_bytes(texts.score, settings.score_bytes)]
    size = len(JOIN.join(documents).encode())
    label = f"{texts.name} {texts.revision}, first {size:,} bytes of the scored part"
    scored = prepare_text(tokenizer, documents, label)
    ids = scored.sequences[0][0].tolist()
    length = min(SAMPLE_PROMPT_TOKENS, settings.prompt_tokens)
    starts = range(0, len(ids) - length, max(1, (len(ids) - length) // SAMPLE_PROMPTS))
    samples = [ids[start : start + length] for start in starts][:SAMPLE_PROMPTS]
    return Workload(scored, ids[: settings.prompt_tokens], ids[: window_length(tokenizer) - settings.new_tokens], samples)
