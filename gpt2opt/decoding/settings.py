"""How tokens are chosen and when a text ends. Names, meanings and defaults are those of transformers' `GenerationConfig`."""

from dataclasses import dataclass

from gpt2opt.settings import is_number, is_whole


@dataclass(frozen=True)
class DecodingSettings:
    """The settings of one generation.

    temperature, top_k, top_p, min_p, typical_p: they change the distribution that `do_sample` draws from, see `processors`. top_k: 0 keeps
    all tokens. num_beams: above 1, beam search. eos_token_id: ends a text; None: only the other limits end it. stop_strings: a text ends
    before the first of these. seed: of the draws. top_logprobs: report the log-probability of each token that was chosen, and the ids and
    log-probabilities of this many most probable ones. prompt_lookup_num_tokens: in greedy decoding of one prompt, guess up to this many
    tokens and check them in one step, which changes no token; None: do so if the model has a table of drafts; see `prompt_lookup`.
    """

    max_new_tokens: int = 20
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    eos_token_id: int | None = None
    stop_strings: tuple[str, ...] = ()
    seed: int = 0
    top_logprobs: int | None = None
    prompt_lookup_num_tokens: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError, in one line, for a setting that no generation can follow."""
        lookup = self.prompt_lookup_num_tokens
        stops = isinstance(self.stop_strings, tuple) and all(isinstance(stop, str) and stop for stop in self.stop_strings)
        for name, right, expected in (
            ("max_new_tokens", is_whole(self.max_new_tokens, 1), "a whole number of at least 1"),
            ("temperature", is_number(self.temperature, 1e-3, 1e3), "a number above 0, from 0.001 to 1000; leave do_sample out for greedy"),
            ("top_k", is_whole(self.top_k, 0), "a whole number of at least 0; 0 keeps all tokens"),
            ("top_p", is_number(self.top_p, 0, 1) and self.top_p > 0, "a number above 0 and at most 1; 1 keeps all tokens"),
            ("min_p", self.min_p is None or is_number(self.min_p, 0, 1), "a number from 0 to 1, or None"),
            ("typical_p", is_number(self.typical_p, 0, 1) and self.typical_p > 0, "a number above 0 and at most 1; 1 keeps all tokens"),
            ("repetition_penalty", is_number(self.repetition_penalty, 1e-2, 1e2), "a number from 0.01 to 100; 1 is no penalty"),
            ("num_beams", is_whole(self.num_beams, 1, 1000), "a whole number from 1 to 1000; 1 is no beam search"),
            ("length_penalty", is_number(self.length_penalty, -20, 20), "a number from -20 to 20; 0 is no penalty"),
            ("early_stopping", self.early_stopping in (True, False, "never"), 'True, False or "never"'),
            ("seed", is_whole(self.seed, 0, 2**64 - 1), "a whole number of at least 0 and below 2**64"),
            ("top_logprobs", self.top_logprobs is None or is_whole(self.top_logprobs, 0), "a whole number of at least 0, or None"),
            ("prompt_lookup_num_tokens", lookup is None or is_whole(lookup, 0), "a whole number of at least 0, or None"),
            ("stop_strings", stops, "a tuple of strings, none of them empty"),
        ):
            if not right:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected {expected}")
        if self.do_sample and self.num_beams > 1:
            raise ValueError("do_sample and num_beams > 1 are two methods: choose one of them")
        plain = self.method == "greedy" and self.repetition_penalty == 1 and self.top_logprobs is None
        if lookup and not plain:
            raise ValueError("prompt_lookup_num_tokens works with greedy decoding alone, without repetition_penalty and top_logprobs")

    @property
    def method(self) -> str:
        """Return the name of the method: greedy, sampling or beam search."""
        return "beam search" if self.num_beams > 1 else "sampling" if self.do_sample else "greedy"
