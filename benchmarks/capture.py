"""What a capture costs beside the teacher's bare forward: positions a second and memory, as ratios of one run.

    python benchmarks/capture.py --model path/to/teacher --text folder/of/txt [--json]

Every way runs in a process of its own, in turns, over the same batches of the same sequences, one thread for torch:
    forward   transformers' own forward, whose logits are thrown away: [B, S, V] at once
    chunked   the body, and the head on the scored positions alone, a chunk at a time; logits thrown away
    capture   a replica as the capture runs it: targets chosen, encoded with compact-1 and written, two shards at a time
    parquet   transformers' own forward, log_softmax and top-k, a list for each position to Parquet
"spare core" gives the process two processors, "one core" a single one. Rates count wall time after a first shard that
compiles and warms up; a ratio is the median over rounds of neighbours in time. Memory is what the process has before
the measurement (model, libraries, code tables) and its peak above that, each less that of `chunked`, whose own peak
holds one chunk x V.

On a GPU the same command runs there; "spare core" is then what matters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from process_memory import forget_peak, memory

from distributed_kd.cache.manifest import made_from_of, store_of
from distributed_kd.corpus.batch import by_tokens, collate
from distributed_kd.corpus.prepare import prepare
from distributed_kd.corpus.sequences import Sequence, Sequences
from distributed_kd.models.config import load_config, vocabulary_size
from distributed_kd.models.load import choose_device, load_model, resolve_dtype
from distributed_kd.models.locate import locate
from distributed_kd.recipe import Recipe, parse
from distributed_kd.teacher.capture import new_manifest, teacher_identity
from distributed_kd.teacher.network import Network
from distributed_kd.teacher.replica import SHARDS, Replica

WAYS = ("forward", "chunked", "capture", "parquet")
K = 64


def recipe_of(options: argparse.Namespace, workdir: str) -> Recipe:
    return parse(
        {
            "name": "benchmark", "workdir": workdir,
            "corpus": {
                "source": options.text, "format": "text", "sequence_length": options.length, "packing": "concatenate",
                "shard_sequences": options.shard_sequences, "validation_fraction": 0.0,
            },
            "teachers": [{"model": options.model, "dtype": options.dtype}],
            "targets": {"method": "top_k", "k": K},
            "capture": {
                "batch_tokens": options.batch_tokens or 2 * options.length, "head_chunk": options.head_chunk,
                "codec": "compact-1", "table_positions": 2048,
            },
            "student": {"model": options.model}, "trainer": {"steps": 1},
        }
    )  # fmt: skip


def run_shards(way: str, recipe: Recipe) -> Callable[[list[int]], int]:
    """A function that takes shards through the teacher and returns their scored positions."""
    sequences = Sequences.of(recipe)
    if way == "capture":
        return _capture(recipe, sequences)
    if way == "chunked":
        network = Network(recipe.teachers[0], recipe.capture)
        logits_of: Callable[[list[Sequence]], Any] = lambda group: list(  # noqa: E731
            map(_forget, network.outputs(collate(group)))
        )
    else:
        logits_of = _own_forward(recipe, keep=way == "parquet")

    @torch.inference_mode()
    def run(shards: list[int]) -> int:
        positions = 0
        for shard in shards:
            rows = sequences.read(shard)
            found = [logits_of(group) for group in by_tokens(rows, recipe.capture.batch_tokens)]
            positions += sum(row.positions for row in rows)
            if way == "parquet":
                ids, values = ([row for batch in found for row in batch[side]] for side in (0, 1))
                pq.write_table(pa.table({"ids": ids, "logprobs": values}), f"{recipe.workdir}/{shard}.parquet")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return positions

    return run


def _forget(logits: torch.Tensor) -> None:
    return None


def _own_forward(recipe: Recipe, keep: bool) -> Callable[[list[Sequence]], Any]:
    device = choose_device()
    spec = recipe.teachers[0]
    model = load_model(locate(spec.model), resolve_dtype(spec.dtype, device), device)

    def forward(group: list[Sequence]) -> Any:
        batch = collate(group)
        moved = [torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.position_ids)]
        logits = model(input_ids=moved[0], position_ids=moved[1], use_cache=False).logits
        if not keep:
            return None
        scored = torch.log_softmax(logits[torch.from_numpy(batch.loss_mask).to(device)].float(), dim=-1)
        values, ids = scored.topk(K, dim=-1)
        return ids.tolist(), values.tolist()

    return forward


def _capture(recipe: Recipe, sequences: Sequences) -> Callable[[list[int]], int]:
    store = store_of(recipe)
    shards = [entry.shard for entry in sequences.shards("train")]
    made_from = made_from_of(recipe, sequences.manifest.fingerprint, teacher_identity(recipe, None))
    manifest = new_manifest(recipe, sequences, made_from, len(shards))
    replica = Replica(recipe)
    tables = replica.make_tables(shards, None)
    manifest = manifest.model_copy(update={"tables": tables})
    manifest.put(store)

    def run(shards: list[int]) -> int:
        with ThreadPoolExecutor(SHARDS) as calls:  # as the actor's concurrency group does
            return sum(r.entry.positions for r in calls.map(lambda shard: replica.capture(shard, manifest), shards))

    return run


def child(options: argparse.Namespace) -> None:
    """One way in this process: prints what it measured."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores if options.cores == "spare core" else cores[:1])
    torch.set_num_threads(1)
    recipe = recipe_of(options, options.workdir)
    run = run_shards(options.child, recipe)
    shards = [entry.shard for entry in Sequences.of(recipe).shards("train")][: options.shards + 1]
    run(shards[:1])
    forget_peak()
    before = memory()
    begun = time.perf_counter()
    positions = run(shards[1:])
    seconds = time.perf_counter() - begun
    print(json.dumps({"rate": positions / seconds, "above": memory("VmHWM") - before, "before": before}))


def measure(options: argparse.Namespace, workdir: str, way: str, cores: str) -> dict[str, float]:
    arguments = [
        sys.executable, __file__, "--child", way, "--cores", cores, "--workdir", workdir, "--model", options.model,
        "--text", options.text, "--dtype", options.dtype, "--length", str(options.length),
        "--shards", str(options.shards), "--shard-sequences", str(options.shard_sequences),
        "--batch-tokens", str(options.batch_tokens), "--head-chunk", str(options.head_chunk),
    ]  # fmt: skip
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def report(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as workdir:
        recipe = recipe_of(options, workdir)
        prepare(recipe)
        rows = []
        for cores in ("spare core", "one core"):
            rounds = [{way: measure(options, workdir, way, cores) for way in WAYS} for _ in range(options.rounds)]
            for way in WAYS:
                rows.append(
                    {
                        "way": way,
                        "cores": cores,
                        "positions_per_second": statistics.median(own[way]["rate"] for own in rounds),
                        "of_forward": statistics.median(own[way]["rate"] / own["forward"]["rate"] for own in rounds),
                        "of_chunked": statistics.median(own[way]["rate"] / own["chunked"]["rate"] for own in rounds),
                        "loaded_above_chunked": max(own[way]["before"] - own["chunked"]["before"] for own in rounds),
                        "peak_above_chunked": max(own[way]["above"] - own["chunked"]["above"] for own in rounds),
                    }
                )
        vocabulary = vocabulary_size(load_config(locate(options.model)))
        shard_bytes = max(path.stat().st_size for path in Path(workdir, "cache", "shards").glob("*.arrow"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "machine": f"{device}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model": options.model,
        "text": options.text,
        "dtype": options.dtype,
        "chunk_times_v_bytes": recipe.capture.head_chunk * vocabulary * 4,
        "positions_per_shard": options.shard_sequences * (options.length - 1),
        "shard_file_bytes": shard_bytes,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=0, help="0: two sequences")
    parser.add_argument("--head-chunk", type=int, default=256)
    parser.add_argument("--shard-sequences", type=int, default=4)
    parser.add_argument("--shards", type=int, default=6, help="measured in a round, after one to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--cores", help=argparse.SUPPRESS)
    parser.add_argument("--workdir", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    found = report(options)
    if options.json:
        print(json.dumps(found))
        return
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"{found['machine']}; {versions}; {found['dtype']}")
    chunk, shard = found["chunk_times_v_bytes"] / 1e6, found["shard_file_bytes"] / 1e6
    print(f"chunk x V: {chunk:.0f} MB; a shard: {found['positions_per_shard']} positions, {shard:.2f} MB")
    print(f"{'':>10} {'':>8} {'positions':>10} {'of':>8} {'of':>8} {'MB above chunked:':>20}")
    print(f"{'cores':>10} {'way':>8} {'a second':>10} {'forward':>8} {'chunked':>8} {'loaded':>10} {'peak':>9}")
    for row in found["rows"]:
        rates = f"{row['positions_per_second']:10.0f} {row['of_forward']:8.3f} {row['of_chunked']:8.3f}"
        memory = f"{row['loaded_above_chunked'] / 1e6:10.0f} {row['peak_above_chunked'] / 1e6:9.0f}"
        print(f"{row['cores']:>10} {row['way']:>8} {rates} {memory}")


if __name__ == "__main__":
    main()
