"""A server that speaks OpenAI's protocol: a teacher of which nothing but its words can be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from distillkit.errors import UserError
from distillkit.generation.backends.base import Answer, Prompt, Sampling
from distillkit.generation.backends.http import Again, Client, in_parallel
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Task

SHOWN = 60  # characters of a prompt that the server refuses
PATHS = {"chat": "chat/completions", "completions": "completions"}


class Server:
    """Ask a model behind HTTP: vLLM, llama.cpp, Ollama, SGLang, OpenAI, or whatever else speaks the protocol.

    A request that fails for a reason that may pass (429, 5xx, a timeout, a cut connection, a reply that cannot be
    read) is made again after a while, which grows and is random, or as long as the server asks for. Any other refusal
    ends the run with the server's own words.

    Args:
        model: Its name on the server.
        url: Before the paths of the protocol.
        endpoint: "chat" asks by conversations; "completions" by plain text, which the model goes on with.
        key_variable: Of the environment, that holds the key. Keys stand nowhere else.
        concurrency: Requests at a time.
        timeout: Seconds that an answer may take.
        attempts: At each request.
        longest_wait: Seconds between two attempts, at most, unless the server asks for more.
        log_probs: Ask for log-probabilities too; not every server gives them.
        options: Further fields of the requests, such as {reasoning_effort: low}; null leaves a field of ours out.
        prices: Of a million tokens, {input: …, output: …}, for the cost in the report.
    """

    def __init__(
        self,
        model: str,
        url: str = "http://localhost:8000/v1",
        endpoint: Literal["chat", "completions"] = "chat",
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 120.0,
        attempts: int = 8,
        longest_wait: float = 60.0,
        log_probs: bool = False,
        options: dict[str, Any] | None = None,
        prices: dict[str, float] | None = None,
    ) -> None:
        for key, value in (("concurrency", concurrency), ("attempts", attempts)):
            if value < 1:
                raise UserError(f"must be at least 1, got {value}", where=key)
        if timeout <= 0 or longest_wait < 0:
            raise UserError("needs timeout > 0 and longest_wait ≥ 0", where="timeout")
        if prices is not None and set(prices) != {"input", "output"}:
            raise UserError("must be {input: …, output: …}", where="prices")
        self.asks = model
        self.chats = endpoint == "chat"
        self.endpoint = endpoint
        self.concurrency = concurrency
        self.log_probs = log_probs
        self.options = options or {}
        self.prices = prices
        self.client = Client(url, key_variable, timeout, attempts, longest_wait)

    def open(self, teacher: LiveModel | None, task: Task | None) -> ServerWriter:  # noqa: ARG002
        """Get ready; nothing is asked yet."""
        return ServerWriter(self)


class ServerWriter:
    """A server that answers prompts.

    Args:
        server: With the settings.
    """

    tokenizer = None

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = server.client

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Answer]]:
        """Answer prompts, each answer by a request of its own."""
        if sampling.beams > 1:
            raise UserError("a server searches no beams", where="generate.beams", fix="set it to 1")
        samples = range(sampling.samples)
        bodies = [self._body(prompt, sampling, sample) for prompt in prompts for sample in samples]
        answers = in_parallel(self._ask, bodies, self.server.concurrency, self.client.stopped)
        return [answers[start : start + len(samples)] for start in range(0, len(answers), len(samples))]

    def facts(self) -> dict[str, Any]:
        """Return the counts of requests, retries and tokens, and what the tokens cost."""
        counts = {name: self.client.counts[name] for name in ("requests", "retries", "input_tokens", "output_tokens")}
        prices = self.server.prices
        cost = {} if prices is None else {"cost": sum(counts[f"{kind}_tokens"] * prices[kind] for kind in prices) / 1e6}
        return {"backend": "server", "url": self.client.url, **counts, **cost}

    def _body(self, prompt: Prompt, sampling: Sampling, sample: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"prompt": prompt.text}
        if self.server.chats:
            assert prompt.messages is not None
            asked = {"messages": [_told(message) for message in prompt.messages], "tools": prompt.tools or None}
        chat, wanted = self.server.chats, self.server.log_probs
        body = {
            "model": self.server.asks,
            **asked,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature > 0 else None,
            "top_k": sampling.top_k,
            "stop": list(sampling.stop) or None,
            "seed": int(np.random.SeedSequence((*prompt.draw, sample)).generate_state(1)[0]) >> 1,
            "logprobs": (True if chat else 1) if wanted else None,
            **self.server.options,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _ask(self, body: dict[str, Any]) -> Answer:
        asked = body["messages"][-1].get("content") if self.server.chats else body["prompt"]
        return self.client.post(PATHS[self.server.endpoint], body, self._read, f"'{str(asked)[:SHOWN]} …'")

    def _read(self, reply: Any) -> Answer:
        """Read a reply; one that is not of the protocol is no answer."""
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if self.server.chats else choice["text"]
            usage = reply.get("usage") or {}
            log_probs = _log_probs(choice.get("logprobs"))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise Again(f"a reply that is not of the protocol ({str(reply)[:100]})") from error
        tokens = usage.get("completion_tokens")
        self.client.count(input_tokens=usage.get("prompt_tokens") or 0, output_tokens=tokens or 0)
        log_prob = None if log_probs is None else sum(log_probs)
        return Answer(text or "", str(choice.get("finish_reason")), tokens, log_prob)


def _told(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value is not None}


def _log_probs(given: Any) -> list[float] | None:
    """Read the log-probabilities of the tokens, in the form of either endpoint."""
    if not given:
        return None
    if given.get("content") is not None:
        return [float(token["logprob"]) for token in given["content"]]
    found = given.get("token_logprobs")
    return None if found is None else [float(value) for value in found if value is not None]
