"""Questions to a language model behind an OpenAI-compatible address, by the standard library."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import SplitResult, urlsplit
from urllib.request import (
    HTTPRedirectHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from saelib.config import ConfigError
from saelib.files import parsed_json
from saelib.measure.features.deadline import Deadline

LARGEST = 1 << 20  # bytes of a reply
LONGEST = 86_400  # seconds of the longest timeout, a day
HOME = ("localhost", "127.0.0.1", "::1")


class ChatError(RuntimeError):
    """The host gave no usable reply; one sentence that names it."""


class AnswerError(ValueError):
    """A model's answer to one question cannot be used; one sentence."""


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would carry the key to a host that the user did not name."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class Chat:
    """Where questions go: `POST {base}/chat/completions`.

    key_variable: the environment variable with the key; empty for a host that asks for none.
    timeout: seconds within which a reply must have come, whole.
    """

    base: str
    model: str
    key_variable: str = ""
    timeout: float | int = 60.0
    _key: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        address = _address(self.base)
        if "@" in address.netloc:
            raise ConfigError("base: expected an address without a user's name or password")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(f"base = {self.base!r}: expected an address, http(s)://host/v1")
        if not self.model:
            raise ConfigError("model = '': expected the name of a model that the host has")
        if not 0 < self.timeout <= LONGEST:
            raise ConfigError(
                f"timeout = {self.timeout!r:.80}: expected seconds, above 0, at most {LONGEST:,}"
            )
        if self.key_variable and address.scheme == "http" and not self._is_home:
            raise ConfigError(f"base = {self.base!r}: a key goes over https alone")
        if self.key_variable:
            object.__setattr__(self, "_key", key_of(self.key_variable))

    @property
    def _is_home(self) -> bool:
        """Whether the host is this machine: what goes there must not pass a proxy."""
        return urlsplit(self.base).hostname in HOME

    @property
    def host(self) -> str:
        """Host and port of the address."""
        return urlsplit(self.base).netloc

    def reply(self, question: str, max_tokens: int) -> Any:
        """The JSON value that the model answers a question with.

        Raises:
            ChatError: the host is down, slow or refuses, or its reply is no chat completion.
            AnswerError: the model's answer is no JSON.
        """
        content = self._content(self._posted(question, max_tokens))
        try:
            return parsed_json(_unfenced(content))
        except ValueError as error:
            raise AnswerError(f"the answer is no JSON: {content[:80]!r}") from error

    def _posted(self, question: str, max_tokens: int) -> bytes:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        request = Request(
            f"{self.base.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers=self._headers(),
            method="POST",
        )
        with Deadline(self.timeout) as deadline:
            data = self._sent(request, deadline)
        if deadline.is_over:  # and what came until then may end short
            raise ChatError(self._late)
        return data

    def _sent(self, request: Request, deadline: Deadline) -> bytes:
        try:
            with self._opener(deadline).open(request, timeout=self.timeout) as response:
                return response.read(LARGEST)
        except HTTPError as error:
            reason = _printable(error.reason)
            raise ChatError(f"{self.host}: HTTP {error.code} ({reason})") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if deadline.is_over or isinstance(reason, TimeoutError):
                raise ChatError(self._late) from error
            raise ChatError(f"{self.host}: {_printable(reason)}") from error

    @property
    def _late(self) -> str:
        return f"{self.host}: no reply within {self.timeout:g} s"

    def _opener(self, deadline: Deadline) -> OpenerDirector:
        direct = [ProxyHandler({})] if self._is_home else []
        return build_opener(_NoRedirects, *direct, *deadline.handlers())

    def _headers(self) -> Mapping[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    def _content(self, data: bytes) -> str:
        try:
            content = parsed_json(data)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ChatError(f"{self.host}: the reply is no chat completion") from error
        if not isinstance(content, str):
            raise ChatError(f"{self.host}: the reply has no text")
        return content


def _address(base: str) -> SplitResult:
    """The parts of an address; it is not said where it is none, as it may hold a password.

    Raises:
        ConfigError: it cannot be taken apart, or holds what a request cannot.
    """
    try:
        address = urlsplit(base)
        is_usable = address.port != 0 and base.isascii() and base.isprintable() and " " not in base
        (address.hostname or "").encode("idna")  # its labels have a longest length
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ConfigError("base: expected an address in ASCII, http(s)://host/v1 or with a :port")
    return address


def _printable(reason: object) -> str:
    """What a host says of an error, without the characters that a terminal would obey."""
    return "".join(character for character in str(reason)[:200] if character.isprintable())


def key_of(variable: str) -> str:
    """The key that an environment variable holds.

    Raises:
        ConfigError: there is none, or it is no line of printable ASCII; the key is not said.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"key_variable = {variable!r}: the environment has no such variable")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"key_variable = {variable!r}: its value is no key, a line of ASCII")
    return key


def _unfenced(text: str) -> str:
    """Without the fence that models like to put around JSON."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    return text
