"""vLLM in this process, for large teachers on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distillkit.errors import UserError
from distillkit.generation.backends.base import Answer, Prompt, Sampling
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Task


class VLLM:
    """Write with vLLM, which loads the model itself. It asks in one process: it spreads over GPUs by its own means.

    Args:
        path: Folder or hub id of the model.
        chats: Ask by conversations, which vLLM renders by the model's chat template; else by plain text.
        options: Further arguments of `vllm.LLM`, such as {tensor_parallel_size: 2, max_model_len: 4096}.
    """

    def __init__(self, path: str, chats: bool = True, options: dict[str, Any] | None = None) -> None:
        self.asks = path
        self.chats = chats
        self.options = options or {}

    def open(self, teacher: LiveModel | None, task: Task | None) -> VLLMWriter:  # noqa: ARG002
        """Load the model."""
        try:
            import vllm
        except ModuleNotFoundError as error:
            raise UserError(
                f"it needs the package '{error.name}'", where="generate.backend", fix="pip install distillkit[vllm]"
            ) from error
        model = vllm.LLM(model=self.asks, **self.options)
        return VLLMWriter(model, vllm.SamplingParams, self.chats)


class VLLMWriter:
    """A model of vLLM.

    Args:
        model: A `vllm.LLM`.
        parameters: The class of its sampling parameters.
        chats: Whether it is asked by conversations.
    """

    tokenizer = None

    def __init__(self, model: Any, parameters: Any, chats: bool) -> None:
        self.model = model
        self.parameters = parameters
        self.chats = chats
        self.tokens = 0

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Answer]]:
        """Answer prompts, all at once; vLLM fills its batches itself."""
        if sampling.beams > 1:
            raise UserError("it searches no beams", where="generate.beams", fix="use generate/backend=transformers")
        asked = [(prompt, self._parameters(prompt, sampling, n)) for prompt in prompts for n in range(sampling.samples)]
        parameters = [one for _, one in asked]
        if self.chats:
            talks = [prompt.messages for prompt, _ in asked]
            outputs = self.model.chat(talks, parameters, use_tqdm=False)
        else:
            outputs = self.model.generate([prompt.text for prompt, _ in asked], parameters, use_tqdm=False)
        answers = [_answer(output.outputs[0]) for output in outputs]
        self.tokens += sum(answer.tokens or 0 for answer in answers)
        return [answers[start : start + sampling.samples] for start in range(0, len(answers), sampling.samples)]

    def facts(self) -> dict[str, Any]:
        """Return the count of tokens."""
        return {"backend": "vllm", "output_tokens": self.tokens}

    def _parameters(self, prompt: Prompt, sampling: Sampling, sample: int) -> Any:
        return self.parameters(
            n=1,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
            top_k=sampling.top_k or 0,
            stop=list(sampling.stop) or None,
            seed=int(np.random.SeedSequence((*prompt.draw, sample)).generate_state(1)[0]) >> 1,
            logprobs=0,  # of the chosen tokens alone
        )


def _answer(output: Any) -> Answer:
    return Answer(output.text, str(output.finish_reason), len(output.token_ids), output.cumulative_logprob)
