"""Counts the tokens of a prompt by tiktoken, if that is installed; it is never required.

It is used until something is learned of a task and model: from then on the factor learned from answers is as good, and
costs nothing. Its vocabularies may have to be downloaded, so a thread loads them, and until then nothing is counted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ratelimit_worker.policy.estimate import texts_of

log = logging.getLogger(__name__)

MODULE = "tiktoken"
MOST_CHARACTERS = 4_000  #: longest prompt that is counted, which takes some hundred µs; longer ones are estimated
MOST_MODELS = 32

#: Text → its tokens.
Encode = Callable[[str], int]


class Tokenizer:
    """Counts tokens as OpenAI's models do.

    Args:
        load: Returns the encoder of a model; it may take long, and raise anything. None: tiktoken's, if it is
            installed.
        spawn: Runs a function in the background.
    """

    def __init__(
        self,
        load: Callable[[str], Encode] | None = None,
        spawn: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._load = load or (_tiktoken if find_spec(MODULE) is not None else None)
        self._spawn = spawn or _in_thread
        self._encoders: dict[str, Encode | None] = {}  #: None: it is being loaded, or there is none

    def __call__(self, values: Iterable[Any], model: str) -> int | None:
        """Tokens of all texts in `values`; None: they are too long, or the model's encoder is unknown or not loaded.
        Never waits."""
        if self._load is None or not model:
            return None
        if model not in self._encoders:
            if len(self._encoders) < MOST_MODELS:
                self._encoders[model] = None
                self._spawn(lambda: self._fetch(model))
            return None
        encode = self._encoders[model]
        if encode is None:
            return None
        texts = texts_of(values, MOST_CHARACTERS)
        return None if texts is None else sum(map(encode, texts))

    def _fetch(self, model: str) -> None:
        load = self._load
        if load is None:
            return
        try:
            self._encoders[model] = load(model)
        except Exception as error:  # another library, which may also use the network
            log.info("tokenizer.unusable", extra={"model": model, "cause": type(error).__name__})


def _tiktoken(model: str) -> Encode:
    encoding = import_module(MODULE).encoding_for_model(model)
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def _in_thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="rlw-tokenizer", daemon=True).start()
