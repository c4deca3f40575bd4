"""Masked language modelling: which tokens of a sequence are to be predicted, and what stands in their place.

As Devlin et al. (BERT, 2019) have it: of the tokens chosen, 80% become the mask token, 10% any token, 10% stay. A pure
function of (seed, view, tokens): the same text is masked alike wherever it lies, and otherwise in each view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distributed_kd.corpus.sequences import Sequence
from distributed_kd.errors import RequestError
from distributed_kd.recipe import Corpus
from distributed_kd.store.digest import sha256

_MASKED, _RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """A tokenizer's part in it."""

    before: int  # the id that begins a sequence, [CLS]
    after: int  # that ends one, [SEP]
    mask: int
    special: tuple[int, ...]  # ids that are never to be predicted
    vocabulary: int

    @classmethod
    def of(cls, tokenizer: Any, name: str) -> Masking:
        """Raises `RequestError` where the tokenizer lacks one of the three."""
        wanted = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in ("cls", "sep", "mask")}
        lacking = [kind for kind, token in wanted.items() if token is None]
        if lacking:
            raise RequestError(
                f"the tokenizer of {name} has no {' and no '.join(lacking)} token, which corpus.task: masked_lm needs; "
                "name one that has in corpus.tokenizer"
            )
        return cls(wanted["cls"], wanted["sep"], wanted["mask"], tuple(tokenizer.all_special_ids), len(tokenizer))


def views_of(sequence: Sequence, masking: Masking, corpus: Corpus, views: int) -> list[Sequence]:
    """The sequence, framed, masked in so many ways. None where it holds no token that could be predicted."""
    framed = _framed(sequence, masking)
    candidates = np.flatnonzero(~np.isin(framed.input_ids, masking.special))
    if not len(candidates):
        return []
    chosen = max(1, round(corpus.mask_fraction * len(candidates)))
    return [_view(framed, candidates, chosen, masking, f"{corpus.seed} {view}") for view in range(views)]


def _framed(sequence: Sequence, masking: Masking) -> Sequence:
    """[CLS] before and [SEP] after it, where it does not end with one."""
    end = [] if sequence.input_ids[-1] == masking.after else [masking.after]
    lengths = sequence.document_lengths.copy()
    lengths[0] += 1
    lengths[-1] += len(end)
    ids = np.concatenate([[masking.before], sequence.input_ids, end]).astype(np.int32)
    return replace(sequence, input_ids=ids, document_lengths=lengths)


def _view(framed: Sequence, candidates: np.ndarray, chosen: int, masking: Masking, salt: str) -> Sequence:
    ids = framed.input_ids.copy()
    key = int(sha256(salt.encode() + b" " + ids.astype("<i4").tobytes())[:32], 16)
    # Raw Philox output, whose stream is fixed for good.
    order, kind, other = np.random.Philox(key=key).random_raw(3 * len(candidates)).reshape(3, -1)
    drawn = np.sort(np.argsort(order, kind="stable")[:chosen])
    places = candidates[drawn]
    share = kind[drawn] / 2.0**64
    labels = ids[places]
    ids[places] = np.where(
        share < _MASKED,
        masking.mask,
        np.where(share < _MASKED + _RANDOM, (other[drawn] % masking.vocabulary).astype(np.int32), labels),
    )
    loss_mask = np.zeros(len(ids), bool)
    loss_mask[places] = True
    return replace(framed, input_ids=ids, loss_mask=loss_mask, given_labels=labels)
