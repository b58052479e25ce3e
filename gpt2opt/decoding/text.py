"""The text of a sequence while it grows: characters of several tokens and beginnings of a stop string are held back until they are sure."""

from collections.abc import Callable, Sequence

DecodeText = Callable[[list[int]], str]
"""A byte-level tokenizer's way from tokens to text: the text of a list is that of its parts end to end, but for broken characters."""

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer returns for bytes that are no character yet."""


class TextStream:
    """Text that is given out piece by piece. stopped: a stop string came, and nothing follows the text before it."""

    def __init__(self, decode_text: DecodeText, stop_strings: Sequence[str] = ()):
        self.decode_text, self.stop_strings = decode_text, stop_strings
        self.stopped = False
        self._ids: list[int] = []
        self._held = ""

    def push(self, token: int) -> str:
        """Take one more token; return the text that is sure now."""
        self._ids.append(token)
        text = self.decode_text(self._ids)
        if text.endswith(BROKEN):
            return ""
        self._ids = []
        return self._release(text)

    def finish(self) -> str:
        """Return what is still held back: no token follows."""
        text = self._release(self.decode_text(self._ids) if self._ids else "")
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        if not self.stop_strings:
            return text
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self.stop_strings) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self.stop_strings), default=0)
        sure = len(text) - held
        self._held = text[sure:]
        return text[:sure]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
