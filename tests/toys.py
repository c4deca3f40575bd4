"""Makers of toy tokenizers, models and corpora."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

EOS = 0
WORDS = [f"w{number}" for number in range(62)]
VOCABULARY = len(WORDS) + 2
# w60 begins what the assistant says, w61 what others say; what the assistant says is marked as such.
MARKED_TEMPLATE = (
    "{% for message in messages %}{{ 'w60 ' if message.role == 'assistant' else 'w61 ' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + ' <eos>' }}{% endgeneration %}{{ ' ' }}"
    "{% else %}{{ message.content + ' <eos> ' }}{% endif %}{% endfor %}{% if add_generation_prompt %}w60 {% endif %}"
)
CHAT_TEMPLATE = MARKED_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def save_tokenizer(folder: Path, words: list[str] = WORDS, chat_template: str | None = None) -> None:
    """A word-level tokenizer: id 0 ends a text, 1 is unknown, then one id a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": EOS, "<unk>": 1, **{word: place + 2 for place, word in enumerate(words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def llama_config(layers: int, vocabulary: int = VOCABULARY, **changes: Any) -> Any:
    from transformers import LlamaConfig

    settings = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "tie_word_embeddings": True, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": EOS,
    }  # fmt: skip
    return LlamaConfig(**(settings | changes))


def save_model(folder: Path, layers: int, seed: int, **changes: Any) -> Path:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(llama_config(layers, **changes)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_masked_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    """A word-level tokenizer with what a masked language model's has: 0 pads, 2 begins, 3 ends, 4 masks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = [*special.values(), "[MASK]", *words]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **special).save_pretrained(folder)


def save_masked_model(folder: Path, layers: int, seed: int, kind: str = "BertForMaskedLM", **changes: Any) -> Path:
    """A random BERT in which every number counts: biases and layer norms are not the zeros and ones of a fresh one."""
    import torch
    import transformers

    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(WORDS) + 5, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "pad_token_id": 0, "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    model = getattr(transformers, kind)(transformers.BertConfig(**(settings | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_masked_tokenizer(folder)
    return folder


def save_text_classifier(folder: Path, layers: int, seed: int, classes: int) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, pad_token_id=0,
        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.3, num_labels=classes,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    save_masked_tokenizer(folder)
    return folder


def save_counting_teacher(folder: Path) -> Path:
    """A teacher whose answer is known: after id i it is nearly certain of id i + 1 (modulo the vocabulary).

    Its blocks add nothing, so the hidden state is the embedding's direction, and row j of its head is the
    embedding of j - 1.
    """
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama_config(1, hidden_size=64, num_attention_heads=4, tie_word_embeddings=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        embedding = torch.eye(VOCABULARY)
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(embedding.roll(1, dims=0))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def write_corpus(folder: Path, documents: int = 40) -> Path:
    """One file a document; each word tends to be followed by its neighbour, so that there is something to learn."""
    drawn = random.Random(0)
    for number in range(documents):
        place = drawn.randrange(len(WORDS))
        words = []
        for _ in range(drawn.randrange(20, 100)):
            words.append(WORDS[place])
            place = (place + (1 if drawn.random() < 0.8 else drawn.randrange(len(WORDS)))) % len(WORDS)
        (folder / f"document-{number:03d}.txt").write_text(" ".join(words))
    return folder


def write_conversations(path: Path, conversations: int = 40) -> Path:
    """JSON lines; the assistant says the neighbours of the words that it was given."""
    drawn = random.Random(0)
    lines = []
    for _ in range(conversations):
        messages = []
        for _ in range(drawn.randrange(1, 4)):
            place, length = drawn.randrange(len(WORDS)), drawn.randrange(2, 12)
            asked, said = (
                " ".join(WORDS[(place + step + begin) % 60] for step in range(length)) for begin in (0, length)
            )
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines))
    return path


def recipe(teacher: Path, student: Path, corpus: Path, workdir: Path) -> dict[str, Any]:
    """A whole recipe over toys, as data to change before it is parsed."""
    return {
        "name": "toy",
        "workdir": str(workdir),
        "corpus": {
            "source": str(corpus), "sequence_length": 16, "shard_sequences": 16, "validation_fraction": 0.2,
            "development_fraction": 0.1, "block_bytes": 2000,
        },
        "teachers": [{"model": str(teacher), "dtype": "float32"}],
        "targets": {"k": 8, "temperatures": [1.0, 2.0]},
        "capture": {"replicas": 1, "batch_tokens": 64, "head_chunk": 16},
        "student": {"model": str(student)},
        "objective": {"temperature": 2.0, "alpha": 0.5},
        "trainer": {"processes": 1, "global_batch": 8, "micro_batch": 4, "steps": 6, "learning_rate": 1e-2},
        "evaluate": {"bootstrap": 200},
    }  # fmt: skip
