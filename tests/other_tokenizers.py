"""Tokenizers that GPT-2s of other languages come with; none of them is byte-level."""

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = "river stone bright quiet engine train market paper window garden light small city letter number"
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
BERT = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def _ending(tokenizer: Tokenizer, template: str, names: list[str]) -> None:
    ids = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)


def sentence_piece(context: int = 64) -> PreTrainedTokenizerFast:
    """As rinna's: spaces are parts of words, the first one is dropped, and `</s>` is appended."""
    pieces = [*SPECIAL.values(), *(f"▁{word}" for word in WORDS.split()[::2]), *sorted(set(WORDS.replace(" ", "▁"))), ".", ","]
    inner = Tokenizer(models.Unigram([(piece, -float(len(piece) == 1) - 1) for piece in pieces], unk_id=0, byte_fallback=False))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    _ending(inner, "$A </s>", ["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=context, **SPECIAL)


def byte_fallback(context: int = 64) -> PreTrainedTokenizerFast:
    """As Llama's: what the vocabulary does not know is spelled in bytes, and `<s>` comes first."""
    special = {name: token for name, token in SPECIAL.items() if name != "pad_token"}
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    inner.train_from_iterator(
        [WORDS.replace(" ", "▁")], trainers.BpeTrainer(vocab_size=400, special_tokens=[*special.values(), *bytes_], show_progress=False)
    )
    _ending(inner, "<s> $A", ["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=context, **special)


def word_piece(context: int = 64) -> PreTrainedTokenizerFast:
    """As BERT's: no end-of-text, `[CLS]` before a text and `[SEP]` behind it, parts of words after `##`."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=list(BERT.values()), show_progress=False)
    inner.train_from_iterator([WORDS, "今天天气很好 . ,"], trainer)
    _ending(inner, "[CLS] $A [SEP]", ["[CLS]", "[SEP]"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=context, **BERT)


OTHERS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "SentencePiece": sentence_piece, "byte fallback": byte_fallback, "WordPiece": word_piece,
}  # fmt: skip
