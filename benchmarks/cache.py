"""What a position of the logit cache costs, in bytes, KL and time, beside other ways to keep the same numbers.

    python benchmarks/cache.py --model path/to/teacher --text folder/of/txt [--json]

Runs the teacher over 512-token windows of the text files: windows of one half of the files make the code tables,
windows of the other half are measured. Every layout holds the same positions with their input ids, and every byte of
its file is counted (code tables apart, named in their own column). Rates are of one core, in processor time, the
better of three runs after a first one that compiles. Nothing is kept.

Shapes: N positions, K kept ids.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from distributed_kd.cache import codecs, shard
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import NO_ID, SoftTargets
from distributed_kd.corpus.sequences import Sequence
from distributed_kd.models.parts import body_of, head_of

LENGTH = 512
WIDEST = 128
TOP_KS = (16, 50, 64, 128)
DRAWS = (50, 22)
MOST_DRAWS = max(DRAWS)
TEMPERATURES = (1.0, 2.0)
RUNS = 3


@dataclass(frozen=True)
class Captured:
    """What the teacher says of N positions in windows of `LENGTH`; the last position of a window is not scored."""

    windows: np.ndarray  # [windows, LENGTH] int32
    ids: np.ndarray  # [N, WIDEST] int32, the most probable first
    logits: np.ndarray  # [N, WIDEST] float32, relative to the largest
    rest: np.ndarray  # [N, temperatures] logsumexp of the scaled logits that are not in `ids`
    draws: np.ndarray  # [N, MOST_DRAWS] int32: ids drawn at T = 1

    def rows(self, targets: SoftTargets) -> list[Row]:
        mask = np.arange(LENGTH) < LENGTH - 1
        run = np.array([LENGTH], np.int32)
        sequences = [
            Sequence(number, window, mask, np.array([number]), run, isolated=False)
            for number, window in enumerate(self.windows)
        ]
        scored = LENGTH - 1
        return [Row(s, targets[n * scored : (n + 1) * scored]) for n, s in enumerate(sequences)]

    @property
    def tokens(self) -> np.ndarray:
        return self.windows[:, :-1].ravel()

    def top_k(self, k: int, temperatures: tuple[float, ...]) -> SoftTargets:
        odds = []
        for temperature in temperatures:
            scaled = self.logits.astype(np.float64) / temperature
            rest = np.logaddexp(
                self.rest[:, TEMPERATURES.index(temperature)],
                np.logaddexp.reduce(scaled[:, k:], axis=1, initial=-np.inf),
            )
            odds.append(rest - np.logaddexp.reduce(scaled[:, :k], axis=1))
        return SoftTargets(self.ids[:, :k], self.logits[:, :k], np.stack(odds, 1).astype(np.float32), temperatures)

    def drawn(self, draws: int) -> SoftTargets:
        """The first `draws` draws as ids with log-counts, the most frequent first."""
        ids = np.full((len(self.draws), draws), NO_ID, np.int32)
        logits = np.full(ids.shape, -np.inf, np.float32)
        for row, drawn in enumerate(self.draws[:, :draws]):
            found, times = np.unique(drawn, return_counts=True)
            order = np.argsort(-times, kind="stable")
            ids[row, : len(found)] = found[order]
            logits[row, : len(found)] = np.log(times[order] / times[order[0]])
        return SoftTargets(ids, logits, np.full((len(ids), 1), -np.inf, np.float32), (1.0,))


@torch.no_grad()
def capture(model: Any, windows: np.ndarray) -> Captured:
    """Runs the teacher one window at a time, its head over 128 positions at a time."""
    body, head = body_of(model), head_of(model)
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, list[np.ndarray]] = {"ids": [], "logits": [], "rest": [], "draws": []}
    for window in windows:
        hidden = body(torch.tensor(window[None]).long(), torch.arange(LENGTH)[None])[0, :-1]
        for chunk in hidden.split(128):
            logits = head.logits(chunk).float()
            logits -= logits.max(dim=1, keepdim=True).values
            top, ids = logits.topk(WIDEST, dim=1)
            rest = logits.scatter(1, ids, -torch.inf)
            parts["ids"].append(ids.int().numpy())
            parts["logits"].append(top.numpy())
            parts["rest"].append(torch.stack([torch.logsumexp(rest / t, 1) for t in TEMPERATURES], 1).numpy())
            drawn = torch.multinomial(logits.softmax(1), MOST_DRAWS, replacement=True, generator=generator)
            parts["draws"].append(drawn.int().numpy())
    return Captured(windows, **{name: np.concatenate(arrays) for name, arrays in parts.items()})


def windows_of(files: list[Path], tokenizer: Any, count: int) -> np.ndarray:
    """[count, LENGTH] int32: windows drawn evenly over the files, in a fixed order."""
    rng = np.random.default_rng(0)
    texts = [np.array(tokenizer(path.read_text(errors="replace"))["input_ids"], np.int32) for path in files]
    places = [(n, place) for n, text in enumerate(texts) for place in range(0, len(text) - LENGTH + 1, LENGTH)]
    if len(places) < count:
        raise SystemExit(
            f"the text folder has {len(places)} windows of {LENGTH} tokens in this half; {count} are needed"
        )
    weights = 1.0 / np.array([len(texts[n]) for n, _ in places])
    chosen = rng.choice(len(places), count, replace=False, p=weights / weights.sum())
    return np.stack([texts[places[c][0]][places[c][1] : places[c][1] + LENGTH] for c in sorted(chosen)])


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


def measure_codec(
    name: str, sample: Captured, measured: Captured, of: Callable[[Captured], SoftTargets], draws: int
) -> dict[str, Any]:
    """Bytes, rates and KL of a codec's whole shard."""
    targets = of(measured)
    codec = codecs.find(name)
    tables, seconds = None, 0.0
    vocabulary = int(max(measured.ids.max(), sample.ids.max(), measured.draws.max(), sample.draws.max())) + 1
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
    measured: Captured, targets: SoftTargets, write: Callable[[pa.Table], bytes], read: Callable[[bytes], pa.Table]
) -> dict[str, Any]:
    """The same for a table of one row a position: input id, ids, float16 logits, tail odds."""

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
    return row_of(len(targets), len(data), encode_seconds, decode_seconds)


def row_of(positions: int, size: int, encode_seconds: float, decode_seconds: float) -> dict[str, Any]:
    """The row of a layout that keeps the numbers exactly and has no code tables."""
    return {
        "bytes_per_position": size / positions,
        "encode_positions_per_second": positions / encode_seconds,
        "decode_positions_per_second": positions / decode_seconds,
        "kl": {},
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
    return row_of(len(targets), len(data), encode_seconds, decode_seconds)


def measure_all(sample: Captured, measured: Captured) -> list[dict[str, Any]]:
    cases: list[tuple[str, int, Callable[[Captured], SoftTargets]]] = []
    for k in TOP_KS:
        cases.append((f"top-{k}", 0, partial(Captured.top_k, k=k, temperatures=(1.0,))))
    cases.append(("top-64, T = 1 and 2", 0, partial(Captured.top_k, k=64, temperatures=TEMPERATURES)))
    for draws in DRAWS:
        cases.append((f"{draws} draws", draws, partial(Captured.drawn, draws=draws)))
    rows = []
    for case, draws, of in cases:
        targets = of(measured)

        def add(layout: str, figures: dict[str, Any], case: str = case) -> None:
            rows.append({"targets": case, "layout": layout} | figures)

        for codec in ("compact-1", "plain-1"):
            add(codec, measure_codec(codec, sample, measured, of, draws))
        add("Arrow", measure_file(measured, targets, arrow_file, lambda d: pa.ipc.open_file(d).read_all()))
        add("Parquet + zstd", measure_file(measured, targets, parquet_file, lambda d: pq.read_table(io.BytesIO(d))))
        add("JSON lines", measure_file(measured, targets, json_lines, read_json_lines))
        if draws:
            add("24-bit entries", measure_entries(measured, targets))
    return rows


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {', '.join(f'{name} {v}' for name, v in report['versions'].items())}")
    print(f"{report['positions']} positions, code tables from {report['table_positions']}")
    print(f"{'targets':20} {'layout':15} {'bytes':>8} {'encode/s':>10} {'decode/s':>10} {'KL':>18} {'tables':>9}")
    for row in report["rows"]:
        kl = " ".join(f"{value:.1e}" for value in row["kl"].values())
        print(
            f"{row['targets']:20} {row['layout']:15} {row['bytes_per_position']:8.2f} "
            f"{row['encode_positions_per_second']:10,.0f} {row['decode_positions_per_second']:10,.0f} {kl:>18} "
            f"{row['tables_bytes']:9,}"
        )
        if row["layout"] == "compact-1":
            print(" " * 36 + ", ".join(f"{part} {size:.2f}" for part, size in row["bytes_by_part"].items() if size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a causal language model with its tokenizer, a path or a name")
    parser.add_argument("--text", required=True, type=Path, help="a folder of .txt files")
    parser.add_argument("--positions", type=int, default=24_576, help="positions to measure")
    parser.add_argument(
        "--table-positions", type=int, default=24_576, help="positions that the code tables are made from"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    import transformers

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    files = sorted(options.text.glob("*.txt"))
    halves = [
        capture(model, windows_of(half, tokenizer, -(-positions // (LENGTH - 1))))
        for half, positions in ((files[0::2], options.table_positions), (files[1::2], options.positions))
    ]
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "torch": torch.__version__,
        },
        "table_positions": len(halves[0].ids),
        "positions": len(halves[1].ids),
        "rows": measure_all(*halves),
    }
    if options.json:
        print(json.dumps(report))
    else:
        print_table(report)


if __name__ == "__main__":
    main()
