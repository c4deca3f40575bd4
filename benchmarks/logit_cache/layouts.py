"""Measures a layout of the logit cache: bytes of the whole file, processor time both ways, and the KL that it adds.

Shapes: N positions, K kept ids.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from logit_cache.capture import Captured

from distributed_kd.cache import codecs, shard
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets

RUNS = 3


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(the result, processor seconds of the best of `RUNS` runs after one that warms up)."""
    result, best = work(), float("inf")
    for _ in range(RUNS):
        begin = time.thread_time()
        result = work()
        best = min(best, time.thread_time() - begin)
    return result, best


def added_kl(targets: SoftTargets, decoded: SoftTargets, temperature: float) -> float:
    """Mean KL over the kept outcomes, the kept mass taken as the exact one."""
    p, _ = targets.log_probabilities(temperature)
    q, _ = decoded.log_probabilities(temperature)
    by_id, by_other_id = np.argsort(targets.ids, axis=1), np.argsort(decoded.ids, axis=1)
    p = np.take_along_axis(p, by_id, 1).astype(np.float64)
    q = np.take_along_axis(q, by_other_id, 1).astype(np.float64)
    q += (np.logaddexp.reduce(p, axis=1) - np.logaddexp.reduce(q, axis=1))[:, None]
    kept = np.isfinite(p)
    return float((np.where(kept, np.exp(p), 0) * (np.where(kept, p, 0) - np.where(kept, q, 0))).sum(axis=1).mean())


def float16_kl(targets: SoftTargets, draws: int) -> dict[str, float]:
    """What rounding relative logits to float16 adds, by temperature; log-counts of draws come back exactly."""
    rounded = SoftTargets(
        targets.ids, targets.logits.astype(np.float16).astype(np.float32), targets.tail_odds, targets.temperatures
    )
    return {f"{t:g}": 0.0 if draws else added_kl(targets, rounded, t) for t in targets.temperatures}


def vocabulary_of(*captured: Captured) -> int:
    return int(max(max(c.ids.max(), c.draws.max()) for c in captured)) + 1


def measure_codec(
    name: str, sample: Captured, measured: Captured, of: Callable[[Captured], SoftTargets], draws: int
) -> dict[str, Any]:
    """Bytes, rates and KL of a codec's whole shard."""
    targets = of(measured)
    codec = codecs.find(name)
    tables, seconds = None, 0.0
    vocabulary = vocabulary_of(sample, measured)
    if codec.build_tables is not None:
        begin = time.thread_time()
        tables = codec.build_tables(of(sample), sample.tokens, vocabulary, draws)
        seconds = time.thread_time() - begin
    rows = measured.rows(targets)
    lengths = np.array([len(row.targets) for row in rows])
    encoded, encode_seconds = timed(lambda: codec.encode(targets, lengths, measured.tokens, tables))
    temperatures = targets.temperatures
    decoded, decode_seconds = timed(
        lambda: codec.decode(encoded.columns, lengths, measured.tokens, temperatures, tables)
    )
    data, parts = shard.encode(rows, name, "0" * 64, 0, tables)
    count = len(targets)
    return {
        "bytes_per_position": len(data) / count,
        "bytes_by_part": {part: size / count for part, size in parts.items()},
        "encode_positions_per_second": count / encode_seconds,
        "decode_positions_per_second": count / decode_seconds,
        "kl": {f"{t:g}": 0.0 if draws else added_kl(targets, decoded, t) for t in temperatures},
        "tables_bytes": len(tables or b""),
        "tables_seconds": seconds,
    }


def measure_file(
    measured: Captured,
    targets: SoftTargets,
    kl: dict[str, float],
    write: Callable[[pa.Table], bytes],
    read: Callable[[bytes], pa.Table],
) -> dict[str, Any]:
    """The same for a table of one row a position: input id, ids, float16 logits, tail odds; kl: see `float16_kl`."""

    def encode() -> bytes:
        kept = targets.ids != NO_ID
        ends = pa.array(np.concatenate([[0], np.cumsum(kept.sum(axis=1))]), pa.int32())
        odds = pa.array(targets.tail_odds.ravel(), pa.float32())
        return write(
            pa.table(
                {
                    "input_id": pa.array(measured.tokens, pa.int32()),
                    "ids": pa.ListArray.from_arrays(ends, pa.array(targets.ids[kept], pa.int32())),
                    "logits": pa.ListArray.from_arrays(ends, pa.array(targets.logits[kept].astype(np.float16))),
                    "tail_odds": pa.FixedSizeListArray.from_arrays(odds, targets.tail_odds.shape[1]),
                }
            )
        )

    def decode() -> list[np.ndarray]:
        table = read(data)
        columns = [table.column(name).combine_chunks() for name in table.column_names]
        return [(c.flatten() if pa.types.is_nested(c.type) else c).to_numpy(zero_copy_only=False) for c in columns]

    data, encode_seconds = timed(encode)
    _, decode_seconds = timed(decode)
    return row_of(len(targets), len(data), encode_seconds, decode_seconds, kl)


def row_of(
    positions: int, size: int, encode_seconds: float, decode_seconds: float, kl: dict[str, float]
) -> dict[str, Any]:
    """The row of a layout without code tables."""
    return {
        "bytes_per_position": size / positions,
        "encode_positions_per_second": positions / encode_seconds,
        "decode_positions_per_second": positions / decode_seconds,
        "kl": kl,
        "tables_bytes": 0,
    }


def arrow_file(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_file(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    # Parquet has float16 since 2.10, and some readers do not: the logits' bits are what is measured
    place = table.column_names.index("logits")
    logits = table.column("logits").combine_chunks()
    bits = pa.ListArray.from_arrays(logits.offsets, logits.values.view(pa.uint16()))
    pq.write_table(table.set_column(place, "logits", bits), sink, compression="zstd", compression_level=9)
    return sink.getvalue()


def json_lines(table: pa.Table) -> bytes:
    return "\n".join(json.dumps(row) for row in table.to_pylist()).encode()


def read_json_lines(data: bytes) -> pa.Table:
    return pa.Table.from_pylist([json.loads(line) for line in data.decode().split("\n")])


def measure_entries(measured: Captured, targets: SoftTargets) -> dict[str, Any]:
    """Random-sampling KD's published entries, 24 bits for an id and its share (Anshumann et al., ACL 2025), with input
    ids as 16 or 32 bits and one byte a position that says how many entries there are."""
    kept = targets.ids != NO_ID
    shares = np.round(127 * np.exp(targets.logits.astype(np.float64))).astype(np.uint32)

    def encode() -> bytes:
        entries = (targets.ids[kept].astype(np.uint32) << 7) | shares[kept]
        packed = entries.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3]
        width = "<u2" if measured.windows.max() < 1 << 16 else "<u4"
        return kept.sum(axis=1).astype(np.uint8).tobytes() + measured.tokens.astype(width).tobytes() + packed.tobytes()

    def decode() -> tuple[np.ndarray, np.ndarray]:
        body = np.frombuffer(data, np.uint8)[-3 * int(kept.sum()) :].reshape(-1, 3)
        entries = np.pad(body, ((0, 0), (0, 1))).view("<u4").ravel()
        return entries >> 7, entries & 127

    data, encode_seconds = timed(encode)
    _, decode_seconds = timed(decode)
    logits = np.log(np.where(kept, shares / 127, 0), out=np.full(shares.shape, -np.inf), where=kept).astype(np.float32)
    rounded = SoftTargets(targets.ids, logits, targets.tail_odds, targets.temperatures)
    return row_of(
        len(targets), len(data), encode_seconds, decode_seconds, {"1": added_kl(targets, rounded, temperature=1.0)}
    )
