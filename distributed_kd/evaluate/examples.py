"""The chosen held-out positions in words: what stood before, what came, and what each model held probable."""

from __future__ import annotations

from typing import Any

import numpy as np

from distributed_kd.corpus.sequences import Sequence
from distributed_kd.evaluate.chosen import Position, Reason

BEFORE = 32  # ids of context
AFTER = 12


class Words:
    """Ids as text; `tokenizer` is None where positions are no tokens."""

    def __init__(self, task: str, tokenizer: Any) -> None:
        self._task = task
        self._tokenizer = tokenizer

    def text(self, ids: np.ndarray) -> str:
        if self._tokenizer is None or not len(ids):
            return ""
        return str(self._tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))

    def label(self, number: int) -> str:
        """A class by its number, a token as it is written; an id that the tokenizer has not, as large heads do, too."""
        if self._task in ("classification", "frames"):
            return f"class {number}"
        return self.text(np.array([number])) or f"#{number}"

    def around(self, sequence: Sequence, place: int) -> tuple[str, str]:
        """The last ids up to the position with it; where ids are masked, those before it and those after it.

        Of a text that has a class, its beginning.
        """
        ids = sequence.input_ids
        if self._task == "classification":
            return self.text(ids[:BEFORE]), ""
        document = place - int(sequence.position_ids[place])
        end = place if self._task == "masked_lm" else place + 1
        before = self.text(ids[max(document, end - BEFORE) : end])
        return before, self.text(ids[end + 1 : end + 1 + AFTER]) if self._task == "masked_lm" else ""


def described(chosen: list[tuple[Reason, Position]], held_out: list[Sequence], words: Words) -> list[dict[str, Any]]:
    """What `report.json` says of each. `held_out` are the sequences in which positions are counted."""
    ends = np.cumsum([0, *[sequence.positions for sequence in held_out]])
    rows = []
    for reason, position in chosen:
        place = int(np.searchsorted(ends, position.number, side="right")) - 1
        sequence, number = held_out[place], position.number - int(ends[place])
        at = int(np.flatnonzero(sequence.loss_mask)[number])
        before, after = words.around(sequence, at)
        label = int(sequence.labels[at])
        rows.append(
            {
                "chosen": reason,
                "sequence": sequence.sequence_id,
                "document": int(sequence.position_documents[number]),
                "position": at,
                "before": before,
                "after": after,
                "label": {"id": label, "text": words.label(label)},
                "teacher_entropy": position.teacher_entropy,
                "models": {
                    name: {
                        "kl_from_teacher": position.kl[name],
                        "best": [
                            {"id": one, "text": words.label(one), "probability": probability}
                            for one, probability in best
                        ],
                    }
                    for name, best in position.best.items()
                },
            }
        )
    return rows
