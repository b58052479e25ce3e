"""The decoding methods that are compared, with the settings that their papers or transformers' documentation use.

Contrastive search (Su et al. 2022) chooses a probable token whose hidden state is unlike those of the text before it: of the k most
probable tokens the one with the largest (1 − α) · p − α · s, where p is its probability, and s the largest cosine between its hidden
state and those of all tokens before it. Here it is a model whose decoders return these scores in place of logits, so that greedy decoding
in the usual generation loop chooses by them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from gpt2opt.decoding.decoder import Model, as_numpy
from gpt2opt.decoding.processors import log_softmax
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.torch_model import TorchDecoder, TorchModel

GREEDY, CONTRASTIVE = "greedy", "contrastive search"
METHODS: Mapping[str, Mapping[str, Any]] = {
    GREEDY: {},
    "temperature": {"do_sample": True, "temperature": 0.7, "top_k": 0},
    "top-k": {"do_sample": True, "top_k": 50},
    "top-p": {"do_sample": True, "top_p": 0.95, "top_k": 0},
    "typical": {"do_sample": True, "typical_p": 0.95, "top_k": 0},
    "min-p": {"do_sample": True, "min_p": 0.1, "top_k": 0},
    "repetition penalty": {"repetition_penalty": 1.2},
    "beam search": {"num_beams": 4},
    CONTRASTIVE: {"penalty_alpha": 0.6, "top_k": 4},
}
"""Name -> what its `DecodingSettings` change. Every method changes one thing, so that a difference has one cause."""
SAMPLING = tuple(name for name, changed in METHODS.items() if "do_sample" in changed)
"""The methods whose texts depend on the seed."""


def settings_of(method: str, new_tokens: int, seed: int = 0) -> DecodingSettings:
    """Return a method's settings. End-of-text does not end a text, so that all methods do the same amount of work."""
    changed = {} if method == CONTRASTIVE else METHODS[method]  # contrastive search is a model of its own, see `model_of`
    return DecodingSettings(max_new_tokens=new_tokens, seed=seed, **changed)


def model_of(method: str, model: GPT2LMHeadModel) -> Model:
    """Return a model as the generation loop takes it for a method."""
    return ContrastiveModel(model, **METHODS[method]) if method == CONTRASTIVE else TorchModel(model)


class ContrastiveModel:
    """A torch model that is decoded by contrastive search. penalty_alpha: α. top_k: k."""

    def __init__(self, model: GPT2LMHeadModel, penalty_alpha: float, top_k: int):
        self.torch, self.context = TorchModel(model), model.config.n_positions
        self.penalty_alpha, self.top_k = penalty_alpha, top_k

    def decoder(self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 0) -> "ContrastiveDecoder":
        self.torch.decoder(prompts, max_new_tokens)  # checks the prompts
        return ContrastiveDecoder(_HiddenStates(self.torch.model, prompts), self.penalty_alpha, self.top_k)


class ContrastiveDecoder:
    """A `Decoder` that reads all candidates of the next token ahead, as one batch, and returns their scores; -inf for other tokens.

    candidates: (B, k) tokens. directions: (B, k, D), of their hidden states. next_logits: (B · k, V) behind them.
    """

    candidates: np.ndarray
    directions: np.ndarray
    next_logits: np.ndarray

    def __init__(self, decoder: "_HiddenStates", alpha: float, k: int):
        self.ahead, self.alpha, self.k = decoder, alpha, k

    def prefill(self) -> np.ndarray:
        logits = as_numpy(self.ahead.prefill())
        self.before = [_directions(states) for states in self.ahead.hidden_states()]
        return self._scores(logits)

    def decode(self, ids: Any) -> np.ndarray:
        chosen = (self.candidates == np.asarray(ids)).argmax(1)  # which of its candidates each sequence goes on with
        rows = np.arange(len(chosen)) * self.k + chosen
        self.ahead.keep(rows.tolist())
        self.before = [np.concatenate([states, self.directions[row, [chosen[row]]]]) for row, states in enumerate(self.before)]
        return self._scores(self.next_logits[rows])

    def keep(self, rows: Sequence[int]) -> None:
        kept = (np.array(rows)[:, None] * self.k + np.arange(self.k)).ravel()
        self.ahead.keep(kept.tolist())
        self.next_logits, self.before = self.next_logits[kept], [self.before[row] for row in rows]
        self.candidates, self.directions = self.candidates[list(rows)], self.directions[list(rows)]

    def _scores(self, logits: np.ndarray) -> np.ndarray:
        probabilities = np.exp(log_softmax(logits))
        self.candidates = np.argsort(-probabilities, kind="stable")[:, : self.k]
        self.ahead.keep(np.repeat(np.arange(len(logits)), self.k).tolist())
        self.next_logits = as_numpy(self.ahead.decode(self.candidates.reshape(-1, 1)))
        self.directions = np.stack([_directions(each)[0] for each in self.ahead.hidden_states()]).reshape(*self.candidates.shape, -1)
        likeness = np.stack([(own @ before.T).max(-1) for own, before in zip(self.directions, self.before, strict=True)])
        scores = np.full(logits.shape, -np.inf)
        own = (1 - self.alpha) * np.take_along_axis(probabilities, self.candidates, 1) - self.alpha * likeness
        np.put_along_axis(scores, self.candidates, own, 1)
        return scores


class _HiddenStates(TorchDecoder):
    """A decoder that keeps the hidden states that the head got in the last call."""

    def hidden_states(self) -> list[np.ndarray]:
        """Return, for each sequence, the last hidden states (tokens, D) of the tokens that the last call read."""
        width = self.last_hidden.shape[1]
        return [as_numpy(states[mask[-width:].bool()]) for states, mask in zip(self.last_hidden, self.mask, strict=True)]

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        self.last_hidden = super()._hidden(ids)
        return self.last_hidden


def _directions(hidden: np.ndarray) -> np.ndarray:
    return hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
