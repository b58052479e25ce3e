"""A tokenizer by the package `tokenizers` alone, for a process that serves a model: transformers loads torch, in seconds and 300 MB."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

AS_SAVED = ("GPT2Tokenizer", "PreTrainedTokenizer", "BertTokenizer")
"""Classes of transformers, without `Fast`, that take tokenizer.json as it is. Others may build a tokenizer anew from other files."""


class FastTokenizer:
    """What generation needs of a fast tokenizer of transformers, with the same ids and the same text."""

    def __init__(self, inner: Tokenizer, eos_token: str | None):
        self._inner, self.eos_token_id = inner, None if eos_token is None else inner.token_to_id(eos_token)
        inner.no_truncation()
        inner.no_padding()

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self._inner.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], clean_up_tokenization_spaces: bool) -> str:
        return self._inner.decode(ids, skip_special_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        return self._inner.get_vocab()


def fast_tokenizer(folder: Path) -> FastTokenizer | None:
    """Return the tokenizer that save_pretrained() wrote into a folder; None if transformers has to read it, or to say what is wrong."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        kind, listed = config["tokenizer_class"].removesuffix("Fast"), config["added_tokens_decoder"]
        if (whole := folder / "tokenizer.json").exists():
            inner = Tokenizer.from_file(str(whole))
        else:
            inner = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
            inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        if isinstance(inner.pre_tokenizer, pre_tokenizers.ByteLevel):
            inner.pre_tokenizer.add_prefix_space = config.get("add_prefix_space", False)
        inner.add_tokens([AddedToken(**listed[place]) for place in sorted(listed, key=int)])
        given = (dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>") if kind == AS_SAVED[0] else {}) | config
        special = [token for name, token in given.items() if name.endswith("_token") and isinstance(token, str)]
        known = {token.content for token in inner.get_added_tokens_decoder().values()}
        usable = kind in AS_SAVED and known.issuperset(special + (given.get("additional_special_tokens") or []))
        return FastTokenizer(inner, given.get("eos_token")) if usable else None
    except Exception:  # the package raises no type of its own for a damaged file
        return None
