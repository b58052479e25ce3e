"""A tokenizer by the package `tokenizers` alone, for a process that serves a model: transformers loads torch, in seconds and 300 MB."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

GPT2 = "GPT2Tokenizer"
AS_SAVED = (GPT2, "PreTrainedTokenizer", "BertTokenizer")
"""Classes of transformers, without `Fast`, that take tokenizer.json as it is. Others may build a tokenizer anew from other files."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class FastTokenizer:
    """What generation needs of a fast tokenizer of transformers, with the same ids and the same text.

    eos_token_id: the token that ends a text; None if there is none.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int | None):
        self.tokenizer, self.eos_token_id = tokenizer, eos_token_id

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], clean_up_tokenization_spaces: bool) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()


def fast_tokenizer(folder: Path) -> FastTokenizer | None:
    """Return the tokenizer in a folder; None if only transformers can read it, or can say what is wrong with its files."""
    try:
        config = _read(folder / "tokenizer_config.json")
        kind = config.get("tokenizer_class") or _read(folder / "config.json").get("tokenizer_class") or GPT2
        kind = kind.removesuffix("Fast")
        if kind not in AS_SAVED:
            return None
        tokenizer = _tokenizer(folder, kind)
        listed = config.get("added_tokens_decoder", {})
        tokenizer.add_tokens([AddedToken(**listed[place]) for place in sorted(listed, key=int)])
        # Older files have no such list, and then the special tokens are in a file of their own.
        given = dict.fromkeys(SPECIAL[:3], "<|endoftext|>") if kind == GPT2 else {}
        given |= config if listed else config | _read(folder / "special_tokens_map.json")
        special = {name: _special(given[name]) for name in SPECIAL if given.get(name)}
        every = [*special.values(), *map(_special, given.get("additional_special_tokens") or ())]
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        tokenizer.add_tokens([token for token in every if token.content not in known])
        if isinstance(tokenizer.pre_tokenizer, ByteLevel):
            tokenizer.pre_tokenizer.add_prefix_space = config.get("add_prefix_space", False)
    except Exception:  # the package raises no type of its own for a damaged file
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return FastTokenizer(tokenizer, tokenizer.token_to_id(special["eos_token"].content) if "eos_token" in special else None)


def _tokenizer(folder: Path, kind: str) -> Tokenizer:
    """Return the tokenizer in tokenizer.json or, of a GPT-2, in its vocabulary and merges; raise an error if there is neither."""
    if kind != GPT2 or (folder / "tokenizer.json").exists() or (folder / "added_tokens.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _special(token: str | dict[str, Any]) -> AddedToken:
    given = {name: value for name, value in token.items() if name != "__type"} if isinstance(token, dict) else {"content": token}
    return AddedToken(**{**given, "special": True})
