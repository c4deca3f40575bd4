"""Lists of logprobs by position that other programs have made, read as they write them.

    vllm     JSON lines, one answer of a completions request (or of a batch's output) with `prompt_logprobs` each.
             Entry t is of the prompt's token t, from the tokens before it, so that it belongs to position t - 1; the
             first is null. It always has the prompt's own token, which says whether it is of this sequence. Read from
             vLLM's `entrypoints/openai/completion/` (`protocol.py` of d5dba2d, `serving.py` of cc139d8): a choice has
             `prompt_logprobs: list[dict[int, Logprob] | None]`, no logprob below -9999.
    axolotl  a folder as `datasets` saves it: axolotl's prepared dataset, with `target_token_ids`, `target_logprobs` and
             `target_mask`. Read from axolotl 0.18.0 (067b021), `integrations/kd/`: rows that `chat_template.py`
             prepares are of token t, with the mask of `labels[t]`, those for which `collator_online_teacher.py` asks
             vLLM of token t + 1, with that of `labels[t + 1]`. Which it is follows from the mask.

A reader gives each row's place and itself; its lists function the lists of a row, for position t those that predict
token t + 1, and None where there are none. It raises `ValueError` for a row that is not of the sequence.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError
from distributed_kd.store.filesystem import open_filesystem

Lists = list[tuple[list[int], list[float]] | None]
_STATE = "state.json"  # what datasets' save_to_disk writes beside the Arrow files


class Format(NamedTuple):
    files: Callable[[str], list[str]]  # of a source, in order, as paths of its filesystem
    rows: Callable[[Any, str], Iterator[Any]]  # of a file of this filesystem
    lists: Callable[[Any, Sequence], Lists]


def find(name: str) -> Format:
    """Raises `RequestError` for a name that is none."""
    if name not in _FORMATS:
        raise RequestError(f"--format {name} is not one of {', '.join(_FORMATS)}")
    return _FORMATS[name]


def _one_file(source: str) -> list[str]:
    fs, path = open_filesystem(source)
    if not fs.isfile(path):
        raise RequestError(f"--from {source}: there is no such file; name one of JSON lines")
    return [path]


def _saved_dataset(source: str) -> list[str]:
    fs, path = open_filesystem(source)
    try:
        state = json.loads(fs.cat_file(f"{path}/{_STATE}"))
        return [posixpath.join(path, posixpath.basename(entry["filename"])) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"--from {source}: no dataset that was saved ({_STATE}) is there; name the folder of axolotl's prepared one"
        ) from error


def _json_lines(fs: Any, path: str) -> Iterator[Any]:
    with fs.open(path, "rb", compression="infer") as stream:
        for line in stream:
            if line.strip():
                yield line


def _arrow_rows(fs: Any, path: str) -> Iterator[Any]:
    with fs.open(path, "rb") as raw, pa.ipc.open_stream(raw) as stream:
        for batch in stream:
            yield from (batch.slice(place, 1) for place in range(batch.num_rows))


def vllm_lists(line: bytes, sequence: Sequence) -> Lists:
    """Of one line. Where the answer has `prompt_token_ids`, they must be the sequence's."""
    try:
        answer = json.loads(line)
        body = answer["response"]["body"] if "response" in answer else answer
        choice = body["choices"][0] if "choices" in body else body
        given = choice["prompt_logprobs"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise ValueError("it is no answer with prompt_logprobs; ask for them: prompt_logprobs=K") from error
    ids = sequence.input_ids.tolist()
    own = choice.get("prompt_token_ids") or body.get("prompt_token_ids")
    if own is not None and own != ids:
        raise ValueError("its prompt_token_ids are not the sequence's; give the rows in the order of the sequences")
    if not isinstance(given, list) or len(given) != len(ids):
        count = len(given) if isinstance(given, list) else 0
        raise ValueError(f"it has {count} prompt_logprobs for {len(ids)} ids; give one row a sequence, in their order")
    found: Lists = []
    for position, (token, entry) in enumerate(zip(ids[1:], given[1:], strict=True)):
        if entry is None:
            found.append(None)
            continue
        try:
            by_id = {int(key): float(value["logprob"]) for key, value in entry.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"position {position}: an entry is not ID: {{logprob: NUMBER}}") from error
        if token not in by_id:
            raise ValueError(
                f"position {position}: the sequence's own next id {token} is not in its list, which vLLM always puts "
                "there; give the rows in the order of the sequences"
            )
        found.append((list(by_id), list(by_id.values())))
    return [*found, None]


def axolotl_lists(row: pa.RecordBatch, sequence: Sequence) -> Lists:
    """Of one row, a record batch of that row alone."""
    names = ("input_ids", "labels", "target_token_ids", "target_logprobs", "target_mask")
    missing = [name for name in names if name not in row.schema.names]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}; name a prepared dataset of axolotl's kd plugin")
    input_ids, labels, kept, log_p, mask = (row.column(name)[0].as_py() for name in names)
    if input_ids != sequence.input_ids.tolist():
        raise ValueError("its input_ids are not the sequence's; give the rows in the order of the sequences")
    if not len(kept) == len(log_p) == len(mask) == len(labels) == len(input_ids):
        raise ValueError(f"its {len(kept)}, {len(log_p)}, {len(mask)} target rows are not one for each id")
    is_given = np.array([any(own) for own in mask], bool)
    found: Lists = []
    for ids, values, own in zip(kept, log_p, mask, strict=True):
        if not len(ids) == len(values) == len(own):
            raise ValueError("a list of ids is not as long as its logprobs or its mask")
        places = [place for place, bit in enumerate(own) if bit]
        found.append(([ids[place] for place in places], [values[place] for place in places]) if places else None)
    has_label = np.array(labels) != -100
    of_own_id = not (is_given & ~has_label).any()
    of_next_id = not (is_given[:-1] & ~has_label[1:]).any() and not is_given[-1]
    if of_own_id == of_next_id and is_given.any():
        raise ValueError(
            "its target_mask does not tell whether a list is of a token or of the next one; prepare it anew"
        )
    return found if of_next_id else [*found[1:], None]


_FORMATS = {
    "vllm": Format(_one_file, _json_lines, vllm_lists),
    "axolotl": Format(_saved_dataset, _arrow_rows, axolotl_lists),
}
