"""Reads a golden cache by docs/cache-format.md with pyarrow, zstandard and numpy alone, and compares it to its numbers.

python -I tests/cache/golden/read.py NAME
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from specification_reader import Tables, read_sequence  # noqa: E402 - the path is made first


def known(path, reference):
    data = path.read_bytes()
    assert len(data) == reference["bytes"] and hashlib.sha256(data).hexdigest() == reference["sha256"], path
    return data


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_plain(row):
    """(ids, logits, odds) of each position, what fills it left out."""
    for ids, logits, odds in zip(row["ids"], row["logits"], row["tail_odds"], strict=True):
        count = len(ids) - ids.count(-1)
        assert all(i >= 0 for i in ids[:count]) and all(z == -np.inf for z in logits[count:])
        yield ids[:count], logits[:count], odds


def read_dense(row, temperatures):
    for levels, span in zip(row["levels"], row["ranges"], strict=True):
        squares = (np.array(levels, np.float32) / np.float32(255)) ** 2
        yield list(range(len(levels))), -(np.float32(span) * squares), [-np.inf] * temperatures


def main(name):
    folder = FOLDER / name
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert hashlib.sha256(canonical(manifest["made_from"])).hexdigest() == manifest["fingerprint"]
    assert manifest.pop("sha256") == hashlib.sha256(canonical(manifest)).hexdigest()
    codec = manifest["codec"]
    assert (manifest["format"], manifest["version"]) == ("dkd-cache", 1) and name.startswith(codec)
    index = pa.ipc.open_file(known(folder / "index.arrow", manifest["index"])).read_all().to_pylist()
    assert [entry["shard"] for entry in index] == list(range(manifest["shards"]))
    tables = Tables(known(folder / "tables.bin", manifest["tables"])) if manifest["tables"] else None

    expected = np.load(FOLDER / f"{name}.npz")
    place, scored, ends = 0, 0, np.cumsum([0, *expected["lengths"]])
    for entry in index:
        shard = pa.ipc.open_file(known(folder / "shards" / f"{entry['shard']:08d}.arrow", entry)).read_all()
        metadata = {key.decode(): value.decode() for key, value in shard.schema.metadata.items()}
        assert metadata["codec"] == codec and metadata["shard"] == str(entry["shard"])
        assert metadata["fingerprint"] == manifest["fingerprint"]
        assert metadata.get("tables") == (manifest["tables"] or {}).get("sha256")
        for row in shard.to_pylist():
            part = slice(ends[place], ends[place + 1])
            assert row["sequence_id"] == expected["sequence_ids"][place]
            assert row["input_ids"] == expected["input_ids"][part].tolist()
            assert row["loss_mask"] == expected["loss_mask"][part].tolist()
            assert row["documents"] == expected["documents"][2 * place : 2 * place + 2].tolist()
            place += 1
            tokens = [token for token, scores in zip(row["input_ids"], row["loss_mask"], strict=True) if scores]
            if codec == "compact-1":
                read = read_sequence(row, tokens, tables)
            elif codec == "dense-1":
                read = list(read_dense(row, len(manifest["temperatures"])))
            else:
                read = list(read_plain(row))
            if "log_p" in expected:
                found = np.array(row["log_p"], np.float32).ravel()
                assert np.array_equal(found, expected["log_p"][scored : scored + len(tokens)].ravel())
            assert len(read) == len(tokens)
            for ids, logits, odds in read:
                kept = expected["ids"][scored] >= 0
                assert ids == expected["ids"][scored][kept].tolist()
                assert np.array_equal(np.float32(logits), expected["logits"][scored][kept])
                assert np.array_equal(np.float32(odds), expected["tail_odds"][scored])
                scored += 1
    assert place == len(expected["lengths"]) and scored == len(expected["ids"])
    assert not any(name.split(".")[0] in ("distributed_kd", "torch") for name in sys.modules)
    print(scored)


main(sys.argv[1])
