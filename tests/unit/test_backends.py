"""Backends: what a server is asked, what becomes of its moods, and that its key is shown nowhere."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from distillkit.build import build
from distillkit.commands import generate_pseudo
from distillkit.errors import UserError
from distillkit.generation.backends.base import Answer, Prompt, Sampling, as_prompt
from distillkit.generation.backends.http import _seconds, in_parallel
from distillkit.generation.backends.server import Server
from distillkit.generation.backends.vllm import VLLM
from tests.pseudo import FILES, config, read
from tests.server import FakeServer, cut_off, hang_up, no_json, other_json, slow, status
from tests.tiny import write_jsonl

KEY = "sk-very-secret-0123456789"
TEXTS = ["one", "two", "three", "four"]


@pytest.fixture
def fake(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("A_KEY", KEY)
    server = FakeServer()
    yield server
    server.shutdown()
    server.server_close()


def ask(fake: FakeServer, sampling: Sampling | None = None, texts=TEXTS, **settings) -> list[list[Answer]]:
    writer = opened(fake, **settings)
    return writer.answer([as_prompt(text) for text in texts], sampling or Sampling())


def opened(fake: FakeServer, **settings):
    given = {"model": "big", "url": fake.url, "key_variable": "A_KEY", "longest_wait": 0.02} | settings
    return Server(**given).open(None, None)


def test_conversations_are_answered_in_their_order(fake):
    sampling = Sampling(99, samples=2, temperature=0.7, top_p=0.9, top_k=40, stop=("END",))
    answers = ask(fake, sampling, log_probs=True, options={"reasoning_effort": "low", "top_k": None})
    assert answers == [[Answer(text[::-1], "stop", 3, -1.5)] * 2 for text in TEXTS]
    path, headers, body = fake.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    seeds = {asked.pop("seed") for *_, asked in fake.asked}
    assert body == {
        "model": "big",
        "messages": [{"role": "user", "content": body["messages"][0]["content"]}],
        "max_tokens": 99,
        "temperature": 0.7,
        "top_p": 0.9,
        "stop": ["END"],
        "logprobs": True,
        "reasoning_effort": "low",
    }
    assert len(seeds) == 2  # the prompts name no row: one for each sample


def test_each_row_has_its_own_seed_whatever_is_asked_beside_it(fake):
    prompts = [Prompt(text, [{"role": "user", "content": text}], draw=(0, row)) for row, text in enumerate(TEXTS)]
    opened(fake).answer(prompts, Sampling())
    opened(fake).answer(prompts[2:3], Sampling())
    seeds = {body["messages"][0]["content"]: body["seed"] for *_, body in fake.asked[:4]}
    assert len(set(seeds.values())) == 4
    assert fake.asked[4][2]["seed"] == seeds["three"]


def test_text_is_gone_on_with(fake):
    answers = ask(fake, endpoint="completions", log_probs=True)
    assert [answer for (answer,) in answers] == [Answer(text[::-1], "stop", 3, -1.0) for text in TEXTS]
    path, _, body = fake.asked[0]
    assert path == "/v1/completions"
    assert body["prompt"] in TEXTS


def test_an_answer_that_was_cut_off_says_so(fake):
    fake.script = [cut_off]
    answers = ask(fake, concurrency=1)
    assert [answer.finished for (answer,) in answers] == [False, True, True, True]


@pytest.mark.parametrize(
    "mood", [status(429), status(500), status(503, Retry_After="0.01"), hang_up, no_json, other_json, slow(0.6)]
)
def test_what_may_pass_is_tried_again(fake, mood):
    fake.script = [mood, mood]
    writer = opened(fake, timeout=0.3, concurrency=2)
    answers = writer.answer([as_prompt(text) for text in TEXTS], Sampling())
    assert [answer.text for (answer,) in answers] == [text[::-1] for text in TEXTS]
    assert writer.facts()["requests"] == 6
    assert writer.facts()["retries"] == 2


def test_the_server_says_how_long_to_wait(fake):
    fake.script = [status(429, Retry_After="0.4")]
    started = time.monotonic()
    ask(fake, texts=["one"])
    assert time.monotonic() - started >= 0.4


def test_a_date_to_come_back_at_is_understood():
    assert _seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert 50 < _seconds(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)) <= 60
    assert [_seconds(told) for told in ("2.5", "soon", "", "-1")] == [2.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (401, "put a valid key into the environment variable A_KEY"),
        (404, "see generate.backend.url"),
        (400, "it was asked: 'one …'"),
    ],
)
def test_what_will_not_pass_is_said_at_once(fake, code, fix, capsys):
    fake.always = status(code, f"you sent {KEY}, which we do not like")
    with pytest.raises(UserError) as error:
        ask(fake, concurrency=1)
    assert len(fake.asked) == 1
    assert str(error.value).startswith(f"generate.backend: the server refuses: {code}")
    assert "which we do not like" in str(error.value)
    assert fix in str(error.value)
    assert KEY not in str(error.value) + capsys.readouterr().err


def test_a_server_that_stays_broken_is_given_up_in_one_line(fake):
    fake.always = hang_up
    with pytest.raises(UserError, match=r"^generate\.backend: http\S+ failed 3 times in a row: .*the same command"):
        ask(fake, attempts=3, concurrency=1)
    assert len(fake.asked) == 3
    fake.shutdown()
    fake.server_close()
    with pytest.raises(UserError, match=r"failed 2 times in a row"):
        ask(fake, attempts=2)


def test_no_more_requests_than_allowed_at_the_same_time(fake):
    fake.always = slow(0.05)
    ask(fake, texts=[str(number) for number in range(12)], concurrency=3)
    assert fake.busiest == 3


def test_an_interrupt_does_not_wait_for_replies():
    stopped = threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner may ignore it

    def ask_slowly(number: int) -> int:
        if number == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(5)
        return number

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        in_parallel(ask_slowly, [0, 1, 2], 2, stopped)
    assert time.monotonic() - started < 4
    assert stopped.is_set()
    signal.signal(signal.SIGINT, before)


def test_tokens_and_their_cost_are_counted(fake):
    writer = opened(fake, prices={"input": 1.0, "output": 10.0})
    writer.answer([as_prompt(text) for text in TEXTS], Sampling())
    facts = writer.facts()
    assert (facts["input_tokens"], facts["output_tokens"], facts["retries"]) == (40, 12, 0)
    assert facts["cost"] == pytest.approx((40 * 1 + 12 * 10) / 1e6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key_variable": KEY}, "must be the name of an environment variable"),
        ({"concurrency": 0}, "must be at least 1"),
        ({"timeout": 0.0}, "needs timeout > 0"),
        ({"prices": {"in": 1.0}}, "input"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as error:
        Server("big", **settings)
    assert KEY not in str(error.value)
    with pytest.raises(UserError, match=r"^generate\.beams"):
        Server("big").open(None, None).answer([as_prompt("a")], Sampling(beams=2))


def run_config(folder: Path, fake: FakeServer, **settings):
    rows = [{"instruction": text, "input": "", "completion": "x"} for text in TEXTS]
    write_jsonl(folder / "rows.jsonl", rows)
    made = config(folder, "out")
    made.task = {"_target_": "distillkit.tasks.causal_lm.CausalLM"}
    made.teacher = {}
    columns = {name: name for name in ("instruction", "input", "completion")}
    made.dataset = {"_target_": FILES, "train": str(folder / "rows.jsonl"), "columns": columns}
    backend = {"_target_": "distillkit.generation.backends.server.Server", "model": "big", "url": fake.url}
    backend |= {"key_variable": "A_KEY", "longest_wait": 0.02, "concurrency": 1, **settings}
    made.generate = {"_target_": "distillkit.generation.text.TeacherText", "backend": backend, "shard_rows": 2}
    return made


def test_a_server_that_dies_midway_leaves_a_run_that_goes_on(fake, tmp_path):
    made = run_config(tmp_path, fake, attempts=2)
    fake.script = [*[slow(0.0)] * 3, hang_up, hang_up]  # the second shard fails
    with pytest.raises(UserError, match="failed 2 times in a row"):
        generate_pseudo.main(made)
    asked = len(fake.asked)
    report = generate_pseudo.main(made)
    assert len(fake.asked) == asked + 2  # the first shard is not asked again
    assert (report["rows"], report["teacher"]) == (4, "big")
    assert report["work"] == {
        "backend": "server",
        "url": fake.url,
        "requests": asked + 2,
        "retries": 1,
        "input_tokens": 50,
        "output_tokens": 15,
    }
    rows = read(tmp_path / "out/pseudo")
    assert [(row["instruction"], row["completion"]) for row in rows] == [(text, text[::-1]) for text in TEXTS]
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert KEY.encode() not in written


class FakeVLLM(ModuleType):
    """What of vLLM is used."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.SamplingParams = lambda **given: given
        self.calls: list = []

    def LLM(self, model: str, **options) -> FakeVLLM:
        self.made = (model, options)
        return self

    def generate(self, texts, parameters, use_tqdm):
        self.calls.append((texts, parameters))
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(text=text[::-1], finish_reason="stop", token_ids=[1, 2], cumulative_logprob=-0.25)
                ]
            )
            for text in texts
        ]

    def chat(self, talks, parameters, use_tqdm):
        return self.generate([talk[-1]["content"] for talk in talks], parameters, use_tqdm)


@pytest.mark.parametrize("chats", [True, False])
def test_vllm_is_asked_all_at_once(monkeypatch, chats):
    fake = FakeVLLM()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    node = {"_target_": "distillkit.generation.backends.vllm.VLLM", "path": "big", "chats": chats}
    writer = build(node | {"options": {"max_model_len": 64}}, "generate.backend").open(None, None)
    answers = writer.answer([as_prompt(text) for text in TEXTS], Sampling(9, samples=2, temperature=0.5))
    assert answers == [[Answer(text[::-1], "stop", 2, -0.25)] * 2 for text in TEXTS]
    assert fake.made == ("big", {"max_model_len": 64})
    ((_, parameters),) = fake.calls
    assert len({one["seed"] for one in parameters}) == 2
    assert {json.dumps({k: v for k, v in one.items() if k != "seed"}) for one in parameters} == {
        json.dumps({"n": 1, "max_tokens": 9, "temperature": 0.5, "top_p": 1.0, "top_k": 0, "stop": None, "logprobs": 0})
    }
    assert writer.facts()["output_tokens"] == 16


def test_a_missing_vllm_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"^generate\.backend: it needs the package 'vllm'; pip install"):
        VLLM("big").open(None, None)
