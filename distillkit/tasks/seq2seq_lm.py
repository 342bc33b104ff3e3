"""Sequence to sequence: an item is a token of the target, which an encoder-decoder writes after reading the source."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from distillkit.errors import UserError
from distillkit.metrics.likelihood import likelihood_metrics
from distillkit.metrics.text import TextMetrics
from distillkit.models.anatomy import agree_on_depth, decoder_start
from distillkit.models.head import head_signal
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.signals import Batch, Model, Signal
from distillkit.tasks.base import Answers, Row, Task, attention_mask, pad
from distillkit.tasks.likelihood import likelihood_answers
from distillkit.tasks.text import encode_texts

LIKELIHOOD = ("loss", "perplexity", "accuracy")


class Seq2SeqLM(Task):
    """Write `target` for `source`: translation, summarisation, data to text.

    The end-of-text token counts; a target that is cut off has none. Losses on features compare the encoders.

    Args:
        max_length: Tokens of a source; longer ones are cut on the right.
        max_target_length: Tokens of a target, likewise.
        metrics: Of the texts that the model writes (`distillkit.metrics.text`), judged by `references`, or by the
            target alone; the first one is what models are compared by.
        generate: When it writes: "final" for the finished student and in `eval` and `compress`, "always" in every
            evaluation while training too (slow), or "never".
        beams: Of beam search; 1 for none.
        max_new_tokens: Longest text to write.
        length_penalty: Of beam search: above 0 favours longer texts, below shorter ones.
        bleu_tokenizer: sacreBLEU's name of what splits texts into words: 13a, intl, zh, char or none.
    """

    name = "seq2seq_lm"
    required_columns = (("source", "target"),)
    prompts = ("source",)
    has_classes = False

    def __init__(
        self,
        max_length: int = 512,
        max_target_length: int = 128,
        metrics: list[str] | None = None,
        generate: Literal["final", "always", "never"] = "final",
        beams: int = 4,
        max_new_tokens: int = 128,
        length_penalty: float = 1.0,
        bleu_tokenizer: str = "13a",
    ) -> None:
        for key, value, least in (
            ("max_length", max_length, 2),
            ("max_target_length", max_target_length, 1),
            ("beams", beams, 1),
            ("max_new_tokens", max_new_tokens, 1),
        ):
            if value < least:
                raise UserError(f"must be at least {least}, got {value}", where=f"task.{key}")
        self.max_length = max_length
        self.max_target_length = max_target_length
        self.texts = TextMetrics(["bleu", "chrf"] if metrics is None else metrics, bleu_tokenizer)
        self.generate = generate
        self.search = {"num_beams": beams, "max_new_tokens": max_new_tokens, "length_penalty": length_penalty}
        written = () if generate == "never" else self.texts.names
        self.metric_names = (*written, *LIKELIHOOD)
        self.metric_columns = (*written, "loss", "hits", "items")
        self.best_metric = self.metric_names[0]

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        return AutoModelForSeq2SeqLM

    def prepare(self, config: Any, labels: list[str] | None, trained: bool, key: str) -> None:  # noqa: ARG002
        """Refuse a model that has no decoder, or one with too few positions."""
        if not config.is_encoder_decoder:
            raise UserError(f"{config.model_type} is no encoder-decoder", where=key)
        agree_on_depth(config)
        positions = getattr(config, "max_position_embeddings", None)
        for name, value in (("max_target_length", self.max_target_length), ("max_new_tokens", self.longest)):
            if positions is not None and value > positions:
                raise UserError(f"{value} tokens are more than the model's {positions} positions", where=f"task.{name}")

    @property
    def longest(self) -> int:
        """Most tokens that a model is let write."""
        return int(self.search["max_new_tokens"])

    def quick(self) -> Seq2SeqLM:
        """Return the task as it is evaluated while training: without texts, unless they are always to be written."""
        if self.generate == "always":
            return self
        task = copy.copy(self)
        task.generate = "never"
        task.metric_names, task.metric_columns, task.best_metric = LIKELIHOOD, ("loss", "hits", "items"), "loss"
        return task

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:  # noqa: ARG002
        """Tokenise; `labels` are the tokens of the target."""
        columns = encode_texts(rows["source"], None, tokenizer, self.max_length, "right")
        columns.pop("token_type_ids", None)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        targets = tokenizer(text_target=rows["target"], verbose=False)["input_ids"]
        whole = [ids if ids[-1:] == end else ids + end for ids in targets]
        columns["labels"] = [ids[: self.max_target_length] for ids in whole]
        columns["truncated"] = [
            cut or len(ids) > self.max_target_length for cut, ids in zip(columns["truncated"], whole, strict=True)
        ]
        columns["length"] = [len(a) + len(b) for a, b in zip(columns["input_ids"], columns["labels"], strict=True)]
        several = rows.get("references") or [None] * len(whole)
        columns["references"] = [own or [one] for own, one in zip(several, rows["target"], strict=True)]
        return columns

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad rows; the decoder reads what it has to write, shifted by one. Shifted here and only here."""
        ids, targets = ([row[name] for row in rows] for name in ("input_ids", "labels"))
        written = pad(targets, tokenizer.pad_token_id)
        counted = attention_mask(targets).bool()
        read = written.roll(1, dims=1)
        read[:, 0] = tokenizer.pad_token_id  # `signal` puts in what the model at hand begins with
        labels = written[counted]
        return Batch(
            inputs={
                "input_ids": pad(ids, tokenizer.pad_token_id),
                "attention_mask": attention_mask(ids),
                "decoder_input_ids": read,
            },
            counted=counted,
            labels=labels,
            taught=torch.ones_like(labels, dtype=torch.bool),
            extras={"references": [row["references"] for row in rows]},
        )

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run the model up to its output head: `HeadLogits` over the items."""
        read = batch.inputs["decoder_input_ids"].clone()
        read[:, 0] = decoder_start(model)
        return head_signal(model, replace(batch, inputs=batch.inputs | {"decoder_input_ids": read}))

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Return what each row's target costs (nats), hits, the most likely tokens, and the text that is written."""
        logits = model(batch).logits
        assert logits is not None
        answers = likelihood_answers(logits, batch)
        if self.generate == "never":
            return answers
        if not isinstance(model, LiveModel | OnnxModel):
            raise UserError(f"a {type(model).__name__} writes no text", where="task.generate", fix="set it to never")
        references = batch.extras["references"]
        texts = write(model, batch.inputs["input_ids"], batch.inputs["attention_mask"], self.search)
        answers |= {"text": texts, "references": references}
        return answers | self.texts.statistics(texts, references)

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Judge the texts, and return nats a token, perplexity and accuracy over all target tokens alike."""
        found = {} if self.generate == "never" else self.texts.values(answers)
        return found | likelihood_metrics(answers["loss"], answers["hits"], answers["items"])


def write(model: LiveModel | OnnxModel, ids: Tensor, mask: Tensor, search: dict[str, Any]) -> list[str]:
    """Let an encoder-decoder write a text for each source `[batch, length]`."""
    writer = model.model if isinstance(model, LiveModel) else model.writer
    options = dict(search)
    if options["num_beams"] == 1:
        del options["length_penalty"]
    output = writer.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        pad_token_id=model.tokenizer.pad_token_id,
        eos_token_id=model.tokenizer.eos_token_id,
        decoder_start_token_id=decoder_start(writer),
        **options,
    )
    return model.tokenizer.batch_decode(output, skip_special_tokens=True)
