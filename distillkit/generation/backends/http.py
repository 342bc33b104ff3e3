"""Post JSON to a server that may be slow, busy or broken, and try again where that can help."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from distillkit.errors import UserError

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")

BUSY = (408, 409, 425, 429)  # statuses below 500 that another attempt may change
SHOWN = 200  # characters of a server's own words
HIDDEN = "***"


class Again(Exception):
    """No use can be made of a reply, but another attempt may bring a better one.

    Args:
        reason: What was wrong.
        seconds: How long the server says to wait.
    """

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Client:
    """Requests to one server, from any number of threads.

    Args:
        url: Before the paths of the protocol, such as https://api.openai.com/v1.
        key_variable: Of the environment, that holds the key; nothing is sent if it is not set. The key is never shown.
        timeout: Seconds that a reply may take.
        attempts: At each request; only those fail that more attempts can help.
        longest_wait: Seconds between two attempts, at most, unless the server asks for more.
    """

    def __init__(self, url: str, key_variable: str, timeout: float, attempts: int, longest_wait: float) -> None:
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_variable) is None:
            raise UserError(
                "must be the name of an environment variable", where="key_variable", fix="put the key there, not here"
            )
        try:
            import httpx
            import tenacity
        except ModuleNotFoundError as error:
            raise UserError(
                f"a server is asked with the package '{error.name}'",
                where="_target_",
                fix="pip install distillkit[server]",
            ) from error
        self.url = url.rstrip("/")
        self.key_variable = key_variable
        self.key = os.environ.get(key_variable, "").strip()
        self.timeout = timeout
        self.attempts = attempts
        self.counts: Counter[str] = Counter()
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._httpx = httpx
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers, limits=httpx.Limits(max_connections=None))
        self._backoff = tenacity.wait_random_exponential(multiplier=0.5, max=longest_wait)
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(Again),
            sleep=tenacity.sleep_using_event(self.stopped),
            before_sleep=lambda state: self.count(retries=1),  # noqa: ARG005
            reraise=True,
        )

    def post(self, path: str, body: dict[str, Any], read: Callable[[Any], Answered], about: str) -> Answered:
        """Post, and return what `read` makes of the reply; it raises `Again` if it cannot.

        Args:
            path: Behind the address.
            body: What is posted.
            read: Of the reply.
            about: What is asked, for messages.

        Raises:
            UserError: The server refuses, or has failed too often.
        """
        try:
            return self._retrying.copy()(lambda: read(self._attempt(path, body, about)))
        except Again as error:
            raise UserError(
                f"{self.url} failed {self.attempts} times in a row: {error}",
                where="generate.backend",
                fix="what is finished is kept: the same command goes on from there",
            ) from error

    def count(self, **counts: int) -> None:
        """Add to the counts."""
        with self._lock:
            self.counts.update(counts)

    def _attempt(self, path: str, body: dict[str, Any], about: str) -> Any:
        if self.stopped.is_set():
            raise UserError("the request was called off", where="generate.backend")
        self.count(requests=1)
        try:
            reply = self._client.post(f"{self.url}/{path}", json=body)
        except self._httpx.TimeoutException as error:
            raise Again(f"no reply within {self.timeout:g} s") from error
        except self._httpx.TransportError as error:
            raise Again(self._clean(str(error)) or type(error).__name__) from error
        except (self._httpx.InvalidURL, self._httpx.UnsupportedProtocol) as error:
            raise UserError(f"'{self.url}' is no address of a server", where="generate.backend.url") from error
        if reply.status_code >= 500 or reply.status_code in BUSY:
            raise Again(self._said(reply), _seconds(reply.headers.get("retry-after", "")))
        if reply.status_code != 200:
            raise UserError(
                f"the server refuses: {self._said(reply)}", where="generate.backend", fix=self._fix(reply, about)
            )
        try:
            return reply.json()
        except ValueError as error:
            raise Again("a reply that is no JSON") from error

    def _wait(self, state: Any) -> float:
        """Wait as long as the server asks for, else longer after each attempt, and not all threads alike."""
        return max(self._backoff(state), state.outcome.exception().seconds)

    def _said(self, reply: Any) -> str:
        words = " ".join(reply.text.split())
        return self._clean(f"{reply.status_code} {reply.reason_phrase} {words[:SHOWN]}".strip())

    def _fix(self, reply: Any, about: str) -> str:
        if reply.status_code in (401, 403):
            return f"put a valid key into the environment variable {self.key_variable}"
        if reply.status_code == 404:
            return "see generate.backend.url and generate.backend.model"
        return f"it was asked: {about}"

    def _clean(self, text: str) -> str:
        return text.replace(self.key, HIDDEN) if self.key else text


def in_parallel(
    ask: Callable[[Asked], Answered], items: Sequence[Asked], workers: int, stopped: threading.Event
) -> list[Answered]:
    """Ask about every item, some at a time; the first error ends it.

    Threads do not outlive the program: an interrupt need not wait for their replies.
    """
    waiting: SimpleQueue[tuple[int, Asked]] = SimpleQueue()
    done: SimpleQueue[tuple[int, Any, Exception | None]] = SimpleQueue()
    for pair in enumerate(items):
        waiting.put(pair)

    def work() -> None:
        while not stopped.is_set():
            try:
                index, item = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put((index, ask(item), None))
            except Exception as error:
                done.put((index, None, error))
                stopped.set()

    found: dict[int, Answered] = {}
    try:
        for _ in range(min(workers, len(items))):
            threading.Thread(target=work, daemon=True).start()
        for _ in items:
            index, answer, error = done.get()
            if error is not None:
                raise error
            found[index] = answer
    except BaseException:
        stopped.set()
        raise
    return [found[index] for index in range(len(items))]


def _seconds(told: str) -> float:
    """Read a Retry-After: seconds, or a date."""
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # it is neither, or has no time zone
        return 0.0
