"""A transformers model in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from distillkit.errors import UserError
from distillkit.generation.backends.base import LENGTH, STOP, Answer, Prompt, Sampling
from distillkit.generation.decoding.choose import draws
from distillkit.generation.decoding.generate import generate
from distillkit.generation.decoding.loop import Writing, write
from distillkit.generation.decoding.rows import CausalRows, Seq2SeqRows, can_stagger
from distillkit.generation.prompts import encode_beginnings
from distillkit.models.live import LiveModel
from distillkit.models.load import load_live
from distillkit.reporting.console import notice
from distillkit.tasks.base import Task
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.chat import CannotEncode, ChatEncoder

UNCUT = 1 << 30  # tokens
HARMLESS = {  # of a model's own generation settings: which tokens are special, how to draw (which we say), and the like
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "do_sample", "temperature", "top_p"),
    *("top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "max_length", "max_new_tokens", "num_beams"),
    *("num_beam_groups", "num_return_sequences", "early_stopping", "length_penalty", "use_cache", "cache_config"),
    *("cache_implementation", "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores"),
    *("output_logits", "transformers_version", "_from_model_config"),
}


class Transformers:
    """Write with a transformers model: a place in the batch that becomes free is taken by the next prompt at once.

    Beam search, models that cannot let rows begin at different times, and models whose own generation settings ask for
    more than a penalty on repetition write with `model.generate`, prompts of similar length together.

    Args:
        batch_size: Rows at a time.
        path: Folder or hub id of a model to ask instead of the config's teacher.
        dtype: Of its weights: float32, bfloat16 or float16.
    """

    chats = False

    def __init__(self, batch_size: int = 16, path: str | None = None, dtype: str = "float32") -> None:
        if batch_size < 1:
            raise UserError(f"must be at least 1, got {batch_size}", where="batch_size")
        self.batch_size = batch_size
        self.asks = path
        self.dtype = dtype

    def open(self, teacher: LiveModel | None, task: Task | None) -> ModelWriter:
        """Load the model, if it is not the teacher, and try how it can write."""
        if self.asks is not None:
            teacher = load_live(self.asks, task or CausalLM(max_length=2), "backend.path", dtype=self.dtype)
            teacher.to("cuda" if torch.cuda.is_available() else "cpu")
        assert teacher is not None
        return ModelWriter(teacher.eval(), self.batch_size)


class ModelWriter:
    """A model that writes.

    Args:
        live: A language model, causal or encoder-decoder.
        batch_size: Rows at a time.
    """

    def __init__(self, live: LiveModel, batch_size: int) -> None:
        self.live = live
        self.batch_size = batch_size
        self.model, self.tokenizer = live.model, live.tokenizer
        self.model.generation_config.forced_eos_token_id = None  # it would make cut-off answers look whole
        self.penalty = self.model.generation_config.repetition_penalty or 1.0
        own = set(self.model.generation_config.to_diff_dict()) - HARMLESS - {"repetition_penalty"}
        self.staggers = not own and can_stagger(self.model, self.tokenizer.pad_token_id)
        if not self.staggers:
            why = f"its generation settings ask for {', '.join(sorted(own))}" if own else "its rows must begin together"
            notice(f"{type(self.model).__name__} writes with model.generate: {why}")
        config = self.model.config.get_text_config(decoder=True)
        self.positions: int | None = getattr(config, "max_position_embeddings", None)

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Answer]]:
        """Answer prompts: for each, in their order, `sampling.samples` answers."""
        ends, stop = self._ends(prompts)
        sampling = replace(sampling, stop=(*sampling.stop, *stop))
        ids = [prompt.ids or self._encode(prompt) for prompt in prompts]
        writings = [
            Writing(index, room, draws((*prompt.draw, sample), max(0, room)) if sampling.temperature else _NONE)
            for index, prompt in enumerate(prompts)
            for room in [self._room(ids[index], sampling.max_new_tokens)]
            for sample in range(sampling.samples)
        ]
        is_over = self._end_check(ends, sampling.stop)
        if self.staggers and sampling.beams == 1:
            rows = (Seq2SeqRows if self.model.config.is_encoder_decoder else CausalRows)(
                self.model, self.tokenizer.pad_token_id
            )
            write(rows, ids, writings, sampling, self.batch_size, is_over, self.penalty)
        else:
            generate(self.live, ids, writings, sampling, self.batch_size, ends, is_over)
        found: list[list[Answer]] = [[] for _ in prompts]
        for one in writings:
            found[one.prompt].append(self._answer(prompts[one.prompt], ids[one.prompt], one, ends, sampling.stop))
        return found

    def facts(self) -> dict[str, Any]:
        """Return nothing: it costs no more than time."""
        return {}

    def _encode(self, prompt: Prompt) -> list[int]:
        """Tokenise a prompt that comes as text: as a conversation if the model is made for it."""
        if prompt.messages is not None and self.tokenizer.chat_template is not None:
            return ChatEncoder(self.tokenizer, UNCUT).prompt(prompt.messages, prompt.tools)
        if self.model.config.is_encoder_decoder:
            return self.tokenizer(prompt.text)["input_ids"]
        return encode_beginnings([prompt.text], self.tokenizer)[0]

    def _room(self, ids: list[int], most: int) -> int:
        """Return how many tokens an answer may have, within the model's positions."""
        taken = 1 if self.model.config.is_encoder_decoder else len(ids)
        return most if self.positions is None else max(0, min(most, self.positions - taken))

    def _ends(self, prompts: Sequence[Prompt]) -> tuple[frozenset[int], list[str]]:
        """Return the tokens that end an answer, and the text that ends an assistant's turn if no token does."""
        own = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        stop: list[str] = []
        if self.tokenizer.chat_template is not None and any(prompt.messages is not None for prompt in prompts):
            try:
                tokens, stop = ChatEncoder(self.tokenizer, UNCUT).end_of_turn()
            except CannotEncode as error:
                raise UserError(str(error), where="task.chat_template") from error
            ends |= set(tokens)
        return frozenset(ends), stop

    def _end_check(self, ends: frozenset[int], stop: tuple[str, ...]) -> Callable[[list[int]], bool]:
        if not stop:
            return lambda tokens: tokens[-1] in ends
        tail = max(len(text.encode()) for text in stop) + 4  # tokens are at least a byte each, and may begin within one

        def is_over(tokens: list[int]) -> bool:
            said = "" if tokens[-1] in ends else self.tokenizer.decode(tokens[-tail:])
            return tokens[-1] in ends or any(text in said for text in stop)

        return is_over

    def _answer(
        self, prompt: Prompt, ids: list[int], one: Writing, ends: frozenset[int], stop: tuple[str, ...]
    ) -> Answer:
        kept = one.tokens[:-1] if one.tokens and one.tokens[-1] in ends else one.tokens
        text = self._text(prompt, ids, kept)
        cut = min((text.find(end) for end in stop if end in text), default=len(text))
        return Answer(text[:cut], STOP if one.reason == STOP else LENGTH, len(one.tokens), one.log_prob)

    def _text(self, prompt: Prompt, ids: list[int], tokens: list[int]) -> str:
        def decode(tokens: list[int]) -> str:
            return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

        if not prompt.continues:
            return decode(tokens)
        head, whole = decode(ids), decode(ids + tokens)  # some tokenizers leave out a space at the very beginning
        return whole[len(head) :] if whole.startswith(head) else decode(tokens)


_NONE = draws((0,), 0)
