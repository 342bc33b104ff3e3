"""A server that speaks OpenAI's protocol, and misbehaves as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler", dict[str, Any]], None]


class FakeServer(ThreadingHTTPServer):
    """Answers every request by the next behaviour of its script; when that is used up, well.

    Attributes:
        script: What to do about the next requests.
        asked: The requests: (path, headers, body).
        busiest: The most requests that were under way at the same time.
    """

    daemon_threads = True

    def __init__(self, script: list[Behaviour] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script or []
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.busy = self.busiest = 0
        self.always: Behaviour = well
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            behave = self.server.script.pop(0) if self.server.script else self.server.always
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        try:
            behave(self, body)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def reply(self, status: int, content: Any, length: int | None = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def well(handler: Handler, body: dict[str, Any], finish: str = "stop") -> None:
    """Say what was asked, backwards; of a token's log-probability, −0.5."""
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    said = asked[::-1]
    logs = {"content": [{"logprob": -0.5}] * 3} if "messages" in body else {"token_logprobs": [None, -0.5, -0.5]}
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": logs if body.get("logprobs") else None}
    choice |= {"message": {"role": "assistant", "content": said}} if "messages" in body else {"text": said}
    handler.reply(200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 3}})


def cut_off(handler: Handler, body: dict[str, Any]) -> None:
    well(handler, body, finish="length")


def status(code: int, message: str = "no", **headers: str) -> Behaviour:
    return lambda handler, body: handler.reply(code, {"error": {"message": message}}, **headers)


def slow(seconds: float) -> Behaviour:
    def behave(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        well(handler, body)

    return behave


def hang_up(handler: Handler, body: dict[str, Any]) -> None:
    """Close the connection in the middle of the reply."""
    handler.reply(200, b'{"choices": [', length=1000)
    handler.close_connection = True
    handler.connection.close()


def no_json(handler: Handler, body: dict[str, Any]) -> None:
    handler.reply(200, b"<html>Bad gateway</html>")


def other_json(handler: Handler, body: dict[str, Any]) -> None:
    handler.reply(200, {"error": {"message": "overloaded"}})
