"""Lists of logprobs as other programs write them, of a teacher that transformers runs by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from distributed_kd.corpus.sequences import Sequence, Sequences


def training_sequences(workdir: Path) -> list[Sequence]:
    from distributed_kd.store.filesystem import Store

    sequences = Sequences.open(Store(str(workdir)))
    return [sequence for entry in sequences.shards("train") for sequence in sequences.read(entry.shard)]


def log_probabilities(teacher: Path, sequence: Sequence) -> torch.Tensor:
    """[S, V] of the teacher's own forward on the ids, as a server runs it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(sequence.input_ids.astype("int64"))[None]).logits[0].log_softmax(dim=1)


def vllm_answer(sequence: Sequence, log_p: torch.Tensor, k: int) -> dict[str, Any]:
    """What vLLM's completions endpoint answers to a prompt of ids and `prompt_logprobs: k`.

    The prompt's own token stands first, and is in the list even where it is not among the k most probable.
    """
    ids = sequence.input_ids.tolist()
    entries: list[Any] = [None]
    for token, row in zip(ids[1:], log_p, strict=False):
        top = row.topk(k).indices.tolist()
        rank = int((row > row[token]).sum()) + 1
        own = {str(token): {"logprob": row[token].item(), "rank": rank, "decoded_token": f"w{token}"}}
        rest = {
            str(one): {"logprob": row[one].item(), "rank": place, "decoded_token": f"w{one}"}
            for place, one in enumerate(top, start=1)
        }
        entries.append(own | rest)
    choice = {"index": 0, "text": "w1", "finish_reason": "length", "logprobs": None, "prompt_logprobs": entries}
    return {"id": "cmpl-1", "object": "text_completion", "model": "teacher", "choices": [choice]}


def write_json_lines(path: Path, answers: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return path


def axolotl_row(sequence: Sequence, log_p: torch.Tensor, k: int, of_next: bool, normalised: bool) -> dict[str, Any]:
    """A row of a prepared dataset, as of axolotl 0.18.0: targets of their own token, or (`of_next`) of the next one."""
    labels = [-100, *sequence.labels[:-1].tolist()]
    values, kept = log_p.topk(k, dim=1)
    if normalised:
        values = values.log_softmax(dim=1)
    ids, logprobs, mask = kept.tolist(), values.tolist(), [[int(bit)] * k for bit in sequence.loss_mask]
    empty = (list(range(k)), [float("-inf")] * k, [0] * k)
    rows = list(zip(ids, logprobs, mask, strict=True))
    rows = [*rows[:-1], empty] if of_next else [empty, *rows[:-1]]
    names = ("target_token_ids", "target_logprobs", "target_mask")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    length = len(labels)
    return {"input_ids": sequence.input_ids.tolist(), "labels": labels, "attention_mask": [1] * length} | columns
