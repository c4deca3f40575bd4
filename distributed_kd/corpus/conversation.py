"""Conversations: lists of messages, rendered by the tokenizer's chat template, and which ids the assistant says.

A template may mark what the assistant says with {% generation %}. Of one that does not, the assistant's turn is what
the conversation up to it adds to what was there before it with the prompt for an answer; so rendering more of a
conversation must not change what was rendered, and a template by which it does is refused.
"""

from __future__ import annotations

import re
from typing import Any, cast

import numpy as np

from distributed_kd.errors import RequestError
from distributed_kd.store.digest import sha256

Messages = list[dict[str, str]]

ROLES = ("system", "user", "assistant", "tool")
_MARKS_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def messages_of(value: Any, where: str) -> Messages:
    """Role and content of each message. Raises `RequestError` for anything that is not a list of those."""
    if not isinstance(value, list):
        raise RequestError(f"{where} is {type(value).__name__}, not a list of messages")
    messages: Messages = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise RequestError(f"{where}: message {number} is {type(message).__name__}, not a role and a content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise RequestError(f"{where}: message {number} has the role {role!r}, not one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            what = "no content" if content is None else f"a content that is {type(content).__name__}, not a text"
            raise RequestError(f"{where}: message {number} ({role}) has {what}")
        messages.append({"role": role, "content": content})
    return messages


def has_answer(messages: Messages) -> bool:
    return any(message["role"] == "assistant" for message in messages)


def chat_template(tokenizer: Any, name: str) -> str:
    """Raises `RequestError` where the tokenizer has none, or cannot say where in a text its ids lie."""
    try:
        template = tokenizer.get_chat_template()
    except (ValueError, AttributeError) as error:
        raise RequestError(
            f"the tokenizer of {name} has no chat template, which corpus.task: chat renders conversations with; "
            "name one that has in corpus.tokenizer"
        ) from error
    if not tokenizer.is_fast:
        raise RequestError(f"the tokenizer of {name} is not a fast one, which corpus.task: chat needs")
    return str(template)


def template_sha256(tokenizer: Any, name: str) -> str:
    return sha256(chat_template(tokenizer, name).encode())


def encode(tokenizer: Any, name: str, messages: Messages, place: str) -> tuple[np.ndarray, np.ndarray]:
    """[n] int32 ids of a conversation and [n] bool: the assistant says it. Raises `RequestError` naming the place."""
    from jinja2 import TemplateError

    template = chat_template(tokenizer, name)
    try:
        if _MARKS_GENERATION.search(template):
            text, turns = _marked(tokenizer, template, messages)
        else:
            text, turns = _derived(tokenizer, name, messages, place)
    except (TemplateError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(
            f"{place}: the chat template of {name} does not render this conversation: {reason}"
        ) from error
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    # Some tokenizers trim white space off, down to nothing at its end; even then an id covers one character.
    begins, ends = np.minimum(offsets[:, 0], offsets[:, 1] - 1), offsets[:, 1]
    said = np.zeros(len(offsets), dtype=bool)
    for begin, end in turns:
        said |= (ends > begin) & (begins < end)
    return np.array(encoded["input_ids"], dtype=np.int32), said


def _marked(tokenizer: Any, template: str, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation and the template's own {% generation %} blocks in it, as [begin, end) characters.

    What `apply_chat_template(return_assistant_tokens_mask=True)` makes its mask from; that mask runs on to the end of
    the conversation where a block ends in white space which the tokenizer trims.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, blocks = cast(Any, render_jinja_template)(
        conversations=[messages], chat_template=template, return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )  # fmt: skip
    return rendered[0], blocks[0]


def _derived(tokenizer: Any, name: str, messages: Messages, place: str) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation and the assistant's turns in it, as [begin, end) characters, from its beginnings."""

    def render(count: int, prompt: bool = False) -> str:
        return str(tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=prompt))

    text = render(len(messages))
    turns = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or number == 0:  # the first message answers nothing
            continue
        before, after = render(number, prompt=True), render(number + 1)
        if not (after.startswith(before) and text.startswith(after)):
            raise RequestError(
                f"{place}: the chat template of {name} renders the beginning of a conversation, up to message "
                f"{number + 1}, otherwise than the whole, so what the assistant says cannot be told; give it "
                "{% generation %} marks"
            )
        turns.append((len(before), len(after)))
    return text, turns
