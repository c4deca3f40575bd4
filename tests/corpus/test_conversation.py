"""Conversations: what a message must be, and that loss falls on what the assistant says and on nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_kd.corpus.conversation import Messages, chat_template, encode, has_answer, messages_of
from distributed_kd.errors import RequestError
from tests import toys
from tests.corpus.test_read import read

CONVERSATION = [
    {"role": "system", "content": "w1 w2"},
    {"role": "user", "content": "w3 w4 w5"},
    {"role": "assistant", "content": "w6"},
    {"role": "user", "content": "w7"},
    {"role": "assistant", "content": "w8 w9"},
]


def tokenizer_with(template: str | None, folder: Path) -> Any:
    from transformers import AutoTokenizer

    toys.save_tokenizer(folder, chat_template=template)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_with(toys.MARKED_TEMPLATE, tmp_path_factory.mktemp("marked"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_with(toys.CHAT_TEMPLATE, tmp_path_factory.mktemp("plain"))


def test_the_assistants_words_and_end_of_turn_are_said(plain: Any) -> None:
    ids, said = encode(plain, "t", CONVERSATION, "here")
    words = plain.convert_ids_to_tokens(ids.tolist())
    assert " ".join(words) == "w61 w1 w2 <eos> w61 w3 w4 w5 <eos> w60 w6 <eos> w61 w7 <eos> w60 w8 w9 <eos>"
    assert " ".join(word for word, is_said in zip(words, said, strict=True) if is_said) == "w6 <eos> w8 w9 <eos>"
    assert said.tolist()[-4:] == [False, True, True, True]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "assistant"]), st.lists(st.sampled_from(toys.WORDS), min_size=1, max_size=4)
        ),
        max_size=5,
    )
)
def test_the_derived_mask_is_that_of_the_templates_own_marks(
    marked: Any, plain: Any, turns: list[tuple[str, list[str]]]
) -> None:
    conversation = [{"role": "user", "content": "w1"}] + [
        {"role": role, "content": " ".join(words)} for role, words in turns
    ]
    wanted = marked.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
    for tokenizer in (marked, plain):
        ids, said = encode(tokenizer, "t", conversation, "here")
        assert ids.tolist() == wanted["input_ids"]
        assert said.astype(int).tolist() == wanted["assistant_masks"]
        assert said.any() == has_answer(conversation)


@pytest.mark.parametrize("trim", [False, True])
def test_byte_level_tokens_are_marked_to_the_last_character(trim: bool) -> None:
    """A turn that ends in white space: where a tokenizer trims that off its offsets, the user's turns stay unmarked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = {character: place for place, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim, add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    turns = "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}{% generation %}"
    turns += "{{ m.content + ' ' }}{% endgeneration %}{% else %}{{ m.content + ' ' }}{% endif %}{% endfor %}"
    prompt = "{% if add_generation_prompt %}assistant:{% endif %}"
    conversation = [
        {"role": "user", "content": "Hä?"}, {"role": "assistant", "content": " Ja, 日本 "},
        {"role": "user", "content": "gut"}, {"role": "assistant", "content": "!"}, {"role": "user", "content": "so"},
    ]  # fmt: skip
    for template in (
        turns + prompt,
        (turns + prompt).replace("{% generation %}", "").replace("{% endgeneration %}", ""),
    ):
        tokenizer.chat_template = template
        ids, said = encode(tokenizer, "t", conversation, "here")
        assert tokenizer.decode(ids) == "user:Hä? assistant: Ja, 日本  user:gut assistant:! user:so "
        assert tokenizer.decode(ids[said]) == " Ja, 日本  ! "


def test_a_template_whose_beginnings_are_rendered_otherwise_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content + (' <eos>' if loop.last else ' w0 ') }}{% endfor %}"
    tokenizer = tokenizer_with(template, tmp_path)
    with pytest.raises(
        RequestError, match=r"x line 3: the chat template of t renders the beginning .* message 3"
    ) as error:
        encode(tokenizer, "t", CONVERSATION, "x line 3")
    assert "\n" not in str(error.value)


def test_a_conversation_that_a_template_does_not_render_is_named(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("{{ raise_exception('roles must alternate') }}", tmp_path)
    with pytest.raises(
        RequestError, match="x row 7: the chat template of t does not render this conversation: roles must alternate"
    ):
        encode(tokenizer, "t", CONVERSATION, "x row 7")


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the tokenizer of t has no chat template"):
        chat_template(tokenizer_with(None, tmp_path), "t")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("words", "is str, not a list of messages"),
        (None, "is NoneType, not a list of messages"),
        (["words"], "message 1 is str, not a role and a content"),
        (
            [{"role": "user", "content": "a"}, {"role": "human", "content": "a"}],
            "message 2 has the role 'human', not one",
        ),
        ([{"content": "a"}], "message 1 has the role None, not one of system, user, assistant, tool"),
        ([{"role": "user"}], r"message 1 \(user\) has no content"),
        ([{"role": "assistant", "content": None}], r"message 1 \(assistant\) has no content"),
        ([{"role": "user", "content": ["a"]}], r"message 1 \(user\) has a content that is list, not a text"),
    ],
)
def test_what_is_wrong_with_messages_is_said_with_its_place(tmp_path: Path, value: Any, said: str) -> None:
    good = json.dumps({"messages": CONVERSATION})
    (tmp_path / "x.jsonl").write_text(f"{good}\n{json.dumps({'messages': value})}\n")
    with pytest.raises(RequestError, match=rf"x\.jsonl line 2: column 'messages'.* {said}"):
        read(tmp_path, task="chat")


def test_conversations_are_the_same_documents_wherever_they_lie(tmp_path: Path) -> None:
    conversations = [CONVERSATION, CONVERSATION[1:3], []]
    lines = [json.dumps({"talk": [message | {"id": 3} for message in talk]}) for talk in conversations]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    table = pa.table({"talk": [*conversations[:2], None], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "x.parquet")
    datasets.Dataset.from_dict({"talk": conversations}).save_to_disk(tmp_path / "saved")
    found = [
        read(tmp_path / name, task="chat", messages_column="talk") for name in ("x.jsonl", "x.parquet", "saved")
    ]  # fmt: skip
    for documents in found:
        assert [document.content for document in documents] == conversations
        assert [document.id for document in documents] == [document.id for document in found[0]]
    assert len({document.id for document in found[0]}) == 3


@pytest.mark.parametrize(
    "column", [["text"], [["text"]], [{"role": ["user"], "content": ["a"]}], [[{"role": "user", "text": "a"}]]]
)
def test_a_column_of_another_type_is_refused(tmp_path: Path, column: Any) -> None:
    pq.write_table(pa.table({"messages": column}), tmp_path / "x.parquet")
    with pytest.raises(RequestError, match=r"x\.parquet: column 'messages' is .*, not a list of messages"):
        read(tmp_path, task="chat")
    with pytest.raises(RequestError, match=r"has no column 'talk' .* set corpus\.messages_column"):
        read(tmp_path, task="chat", messages_column="talk")


def test_roles_are_those_of_messages() -> None:
    messages: Messages = [{"role": "tool", "content": ""}]
    assert messages_of(messages, "here") == messages
    assert not has_answer(messages)
    assert np.array_equal([has_answer(CONVERSATION[:count]) for count in range(5)], [False] * 3 + [True] * 2)
