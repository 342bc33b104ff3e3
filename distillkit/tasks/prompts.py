"""Prompts of instruction data: an instruction, perhaps with an input, as the text that an answer follows."""

from __future__ import annotations

from distillkit.errors import UserError

CHAT = "chat"  # a user's message of the tokenizer's chat template, no text
_SO_THAT = "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
TEMPLATES = {  # name → with input, without
    "alpaca": (  # Stanford Alpaca (Taori et al. 2023)
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        f"{_SO_THAT}### Input:\n{{input}}\n\n### Response:\n",
        f"Below is an instruction that describes a task. {_SO_THAT}### Response:\n",
    ),
    "plain": ("{instruction}\n\n{input}\n\n", "{instruction}\n\n"),
}


def check_template(template: str) -> None:
    """Refuse a template that is neither known nor says where the instruction goes."""
    if template not in (*TEMPLATES, CHAT) and "{instruction}" not in template:
        known = ", ".join((*TEMPLATES, CHAT))
        fix = f"use {known}, or text with {{instruction}} and {{input}}"
        raise UserError(f"unknown template '{template}'", where="task.template", fix=fix)


def write_prompt(template: str, instruction: str, text: str | None) -> str:
    """Write a prompt.

    Args:
        template: A name, or text with {instruction} and {input}.
        instruction: What to do.
        text: The input, if there is one.
    """
    if template == CHAT:
        return f"{instruction}\n\n{text}" if text else instruction
    chosen = TEMPLATES.get(template, (template, template))[0 if text else 1]
    parts = chosen.split("{instruction}")  # first, so that nothing in the instruction is taken for a field
    return instruction.join(part.replace("{input}", text or "") for part in parts)
