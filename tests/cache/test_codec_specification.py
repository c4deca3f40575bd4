"""docs/cache-format.md says all there is to know: a reader written from it gives what ours gives."""

import numpy as np
import pytest

from distributed_kd.cache.codecs import compact
from distributed_kd.cache.soft_targets import NO_ID
from tests.cache.specification_reader import Tables, read_sequence
from tests.cache.test_codec_compact import V, draw, teacher


@pytest.mark.parametrize(
    ("make", "draws", "sample"),
    [
        (lambda n, seed: teacher(n, 40, seed=seed), 0, 1000),
        (lambda n, seed: teacher(n, 12, (2.0, 1.0), seed=seed), 0, 300),
        (lambda n, seed: teacher(n, 300, seed=seed), 0, 10),
        (lambda n, seed: draw(n, 30, seed=seed), 30, 400),
        (lambda n, seed: teacher(n, 5, seed=seed), 0, 0),
    ],
)
def test_a_reader_from_the_specification_agrees(make, draws, sample):
    code = compact.build_tables(*(part[:sample] for part in make(max(sample, 1), 0)), V, draws)
    targets, tokens = make(30, 7)
    tokens[3] = V + 2  # of no class
    lengths = np.array([20, 10])
    encoded = compact.encode(targets, lengths, tokens, code)
    ours = compact.decode(encoded.columns, lengths, tokens, targets.temperatures, code)
    tables = Tables(code)
    theirs = []
    for row, (begin, end) in enumerate([(0, 20), (20, 30)]):
        streams = {name: column[row].as_py() for name, column in encoded.columns.items()}
        theirs += read_sequence(streams, tokens[begin:end].tolist(), tables)
    for position, (ids, logits, odds) in enumerate(theirs):
        kept = ours.ids[position] != NO_ID
        assert ours.ids[position][kept].tolist() == ids
        assert ours.logits[position][kept].tolist() == np.float32(logits).tolist()
        assert ours.tail_odds[position].tolist() == odds
