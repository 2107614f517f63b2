"""A vision-language model behind an OpenAI-compatible endpoint, such as vLLM, SGLang, llama.cpp or Ollama serve.

Each question is one POST to URL/chat/completions, at temperature 0, whose images are data URIs.
"""

import base64
import io
import json
import os
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from PIL.Image import Image

from diffpo.captioners.labellers import AskingLabeller
from diffpo.core.block import Count, NotNegative, Place, Positive, Seed, Whole
from diffpo.disk.ahead import ahead
from diffpo.errors import ConfigError, UserError

LARGEST = 2**20
"""Bytes of an answer that are read."""
SHOWN = 200
"""Characters of a server's complaint that a message shows."""
BUSY = 429


@dataclass(frozen=True, kw_only=True)
class EndpointLabeller(AskingLabeller):
    """A model that a server runs."""

    name = "endpoint"

    url: Place
    """Address of the API without the last part: http://localhost:8000/v1."""
    model: Place
    """What the server calls the model."""
    key_variable: Place | None = None
    """Name of the environment variable that holds the key, where the server wants one."""
    max_tokens: Count = 64
    """Where an answer is cut off."""
    seed: Seed = 0
    """Sent with each question; a server may pass over it."""
    timeout: Positive = 120.0
    """Seconds to wait for an answer."""
    retries: Whole = 4
    """How often a question is asked again where the server fails, is busy, or does not answer."""
    wait: NotNegative = 1.0
    """Seconds before it is asked again; twice as long each time."""
    batch: Count = 4
    """Questions at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url is {self.url!r}; write an address such as http://localhost:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                "url holds a key or a query; name an environment variable that holds it: key_variable=NAME."
            )

    @property
    def provenance(self) -> dict[str, Any]:
        more = {"url": self.url, "model": self.model, "max_tokens": self.max_tokens, "seed": self.seed}
        return super().provenance | more

    def write(self, questions: Sequence[list[dict[str, Any]]], keys: Sequence[int]) -> list[str]:
        return list(ahead(self._ask, questions, workers=self.batch, depth=self.batch))

    def _ask(self, question: list[dict[str, Any]]) -> str:
        """Ask until there is an answer, or the patience is over."""
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                return self._post(question)
            except HTTPError as error:
                said = error.read(LARGEST).decode("utf-8", "replace")[:SHOWN].strip()
                reason = f"it answers {error.code} {error.reason}: {said}"
                if error.code < 500 and error.code != BUSY:
                    break
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                reason = f"{getattr(error, 'reason', None) or error or type(error).__name__}"
            except (ValueError, KeyError, IndexError, TypeError) as error:
                reason = f"it answers with something else than a chat completion ({error!r})"
        raise UserError(
            f"{self.url} gave no answer, asked {attempt + 1} times: {reason}. Does the server run, and does it have "
            f"the model {self.model!r} with images? What was answered is kept: the same command continues."
        )

    def _post(self, question: list[dict[str, Any]]) -> str:
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": _content(question)}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "seed": self.seed,
        }
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json", **self._authorization},
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            text = json.loads(response.read(LARGEST))["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError(f"content is {text!r}")
        return text

    @property
    def _authorization(self) -> dict[str, str]:
        if self.key_variable is None:
            return {}
        if self.key_variable not in os.environ:
            raise UserError(f"there is no environment variable {self.key_variable}, which key_variable names.")
        return {"Authorization": f"Bearer {os.environ[self.key_variable]}"}


def _content(question: list[dict[str, Any]]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for part in question:
        frames = part.get("clip", ())
        content += [{"type": "image_url", "image_url": {"url": _data_uri(frame)}} for frame in frames] or [part]
    return content


def _data_uri(frame: Image) -> str:
    file = io.BytesIO()
    frame.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
