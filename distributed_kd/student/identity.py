"""Whether a row of a cache is of the sequence that belongs in its place.

A cache's fingerprint names the sequences' fingerprint, and every shard the cache's; but those say what was to be
captured, and digests that a file is what its writer wrote. A cache whose writer had other sequences under its hands
would be whole and wrong. So what is trained on is held to the sequences artifact itself: by sequence id, which is the
place in the order of shards, and by a digest of the tokens and all that goes with them.
"""

from __future__ import annotations

import hashlib

import numpy as np

from distributed_kd.corpus.sequences import Sequence, Sequences

_BYTES = 16


def sequence_digest(sequence: Sequence) -> bytes:
    """[16] bytes, of its ids, loss mask, documents, given labels and features, whatever its number."""
    digest = hashlib.sha256(b"%d %d" % (len(sequence.input_ids), len(sequence.documents)))
    digest.update(sequence.input_ids.astype("<i4", copy=False).tobytes())
    digest.update(np.packbits(sequence.loss_mask).tobytes())
    digest.update(sequence.documents.astype("<i8", copy=False).tobytes())
    digest.update(sequence.document_lengths.astype("<i4", copy=False).tobytes())
    if sequence.given_labels is not None:
        digest.update(sequence.given_labels.astype("<i4", copy=False).tobytes())
    if sequence.features is not None:
        digest.update(sequence.features.astype("<f4", copy=False).tobytes())
    return digest.digest()[:_BYTES]


class SequenceDigests:
    """Of the training sequences; 16 bytes of each that was loaded are kept."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._held: dict[int, tuple[int, bytes]] = {}  # by shard: its first sequence's id, and all digests

    def load(self, shard: int) -> None:
        """Reads a shard of the artifact, unless it was. Raises `RequestError` when it is not good."""
        if shard not in self._held:
            own = self._sequences.read(shard)  # a sequence shard and its logit shard have one number
            self._held[shard] = (own[0].sequence_id if own else 0, b"".join(map(sequence_digest, own)))

    def has(self, sequence: Sequence, shard: int) -> bool:
        """Whether this is the sequence of that id in the shard."""
        self.load(shard)
        first, digests = self._held[shard]
        begin = _BYTES * (sequence.sequence_id - first)
        return begin >= 0 and digests[begin : begin + _BYTES] == sequence_digest(sequence)
