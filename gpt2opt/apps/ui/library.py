"""The loaded models, shared by everybody who uses the page."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2opt.apps.ui.choices import Choice
from gpt2opt.apps.ui.prepare import Prepared, prepare
from gpt2opt.decoding.decoder import Model

KEPT = 4
"""How many models stay loaded: two people can compare two precisions each. One more, and the one not asked for the longest goes."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory, with its tokenizer."""

    choice: Choice
    prepared: Prepared
    model: Model
    tokenizer: Any


@dataclass
class _Loading:
    lock: Any
    listeners: list[Callable[[dict[str, Any]], None]]
    future: "Future[Loaded]" = field(default_factory=Future)
    last: dict[str, Any] | None = None

    def tell(self, step: int, steps: int, text: str) -> None:
        with self.lock:  # one who asks meanwhile hears this once
            self.last = {"event": "progress", "step": step, "steps": steps, "text": text}
            for listener in self.listeners:
                listener(self.last)


class Library:
    """Loads models, one after the other on a thread of its own, each once for all who ask for it."""

    def __init__(self, out: Path, make: Callable[..., Prepared] = prepare):
        """Take the folder that models are made in, and what makes them there."""
        self.out, self._make = out, make
        self._lock = threading.RLock()
        self._loaded: OrderedDict[Choice, Loaded] = OrderedDict()
        self._loading: dict[Choice, _Loading] = {}
        self._worker = ThreadPoolExecutor(1, "library")

    def ask(self, choice: Choice, listener: Callable[[dict[str, Any]], None]) -> "Future[Loaded]":
        """Return a model as soon as it is loaded.

        Args:
            choice: the model.
            listener: told of progress, as events for the page, on another thread.

        Returns:
            A future of the model; it raises ValueError if the model can't be found, made or loaded.
        """
        with self._lock:
            if choice in self._loaded:
                self._loaded.move_to_end(choice)
                done: Future[Loaded] = Future()
                done.set_result(self._loaded[choice])
                return done
            if choice in self._loading:
                loading = self._loading[choice]
                loading.listeners.append(listener)
                if loading.last:
                    listener(loading.last)
                return loading.future
            loading = self._loading[choice] = _Loading(self._lock, [listener])
            if len(self._loading) > 1:
                loading.tell(0, 1, "waiting until another model is loaded")
        self._worker.submit(self._load, choice, loading)
        return loading.future

    def names(self) -> list[str]:
        """Return what is loaded, the model that was asked for last at the end."""
        with self._lock:
            return [f"{loaded.prepared.name} {choice.precision}" for choice, loaded in self._loaded.items()]

    def _load(self, choice: Choice, loading: _Loading) -> None:
        try:
            loaded = self._read(choice, loading)
        except Exception as error:
            with self._lock:
                del self._loading[choice]
            loading.future.set_exception(error)
            return
        with self._lock:
            del self._loading[choice]
            self._loaded[choice] = loaded
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)  # streams that still use it keep it until they end
        loading.future.set_result(loaded)

    def _read(self, choice: Choice, loading: _Loading) -> Loaded:
        from gpt2opt.runtime.ir_model import load_ir
        from gpt2opt.sources.models import load_tokenizer

        prepared = self._make(choice, self.out, loading.tell)
        loading.tell(*((4, 4) if prepared.made else (1, 1)), "loading it")
        tokenizer = load_tokenizer(prepared.folder)
        # The first call undoes padding and truncation that were saved with it, and must not do that while another thread tokenizes.
        tokenizer("a", verbose=False)
        return Loaded(choice, prepared, load_ir(prepared.folder), tokenizer)
