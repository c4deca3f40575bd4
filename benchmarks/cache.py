"""What a position of the logit cache costs, in bytes, KL and time, beside other ways to keep the same numbers.

    python benchmarks/cache.py --model path/to/teacher --text folder/of/txt [--json] [--plot FILE.png] [--peers PYTHON]

Runs the teacher over 512-token windows of the text files: windows of one half of the files make the code tables,
windows of the other half are measured. Every layout holds the same positions with their input ids, and every byte of
its file is counted (code tables apart, named in their own column). Rates are of one core, in processor time, the
better of three runs after a first one that compiles. Nothing is kept.

MosaicML Streaming and litData (see `logit_cache/peers.py`) need older numpy and transformers than this package, so they
cannot stand in its environment: `pip install mosaicml-streaming==0.13.0 litdata==0.2.76` in one of their own (with a
torchvision of the same build as torch), and name its interpreter with --peers. Without them their rows are left out.

--plot draws bytes against KL, compact-1 at several budgets; it takes some minutes more.

Shapes: N positions, K kept ids.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from logit_cache import peers, plot
from logit_cache.capture import LENGTH, MOST_DRAWS, TEMPERATURES, Captured, capture, windows_of
from logit_cache.layouts import (
    arrow_file,
    float16_kl,
    json_lines,
    measure_codec,
    measure_entries,
    measure_file,
    parquet_file,
    read_json_lines,
    row_of,
)

from distributed_kd.cache.soft_targets import SoftTargets

TOP_KS = (16, 50, 64, 128)
DRAWS = (MOST_DRAWS, 22)

Case = tuple[str, int, Callable[[Captured], SoftTargets]]


def cases() -> list[Case]:
    """(name, draws a position or 0, how its targets come from what was captured)."""
    found: list[Case] = [(f"top-{k}", 0, partial(Captured.top_k, k=k, temperatures=(1.0,))) for k in TOP_KS]
    found.append(("top-64, T = 1 and 2", 0, partial(Captured.top_k, k=64, temperatures=TEMPERATURES)))
    return found + [(f"{draws} draws", draws, partial(Captured.drawn, draws=draws)) for draws in DRAWS]


def measure_peers(measured: Captured, interpreter: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the libraries that the interpreter has, by case and layout; says which it has not."""
    rows = {}
    windows = len(measured.windows)
    with tempfile.TemporaryDirectory() as folder:
        for number, (_, _, of) in enumerate(cases()):
            targets = of(measured)
            arrays = {
                "input_ids": measured.tokens,
                "ids": targets.ids,
                "logits": targets.logits.astype(np.float16),
                "tail_odds": targets.tail_odds,
            }
            split = {name: a.reshape(windows, LENGTH - 1, *a.shape[1:]) for name, a in arrays.items()}
            np.savez(Path(folder) / f"{number}.npz", **split)
        for layout, package in peers.PACKAGES.items():
            command = [interpreter, peers.__file__, layout, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode == peers.MISSING:
                print(f"no rows for {layout}: {interpreter} has no {package}; see --peers", file=sys.stderr)
                continue
            if done.returncode:
                raise SystemExit(f"measuring {layout} failed; its error stands above")
            figures = json.loads(done.stdout.splitlines()[-1])
            for number, (case, draws, of) in enumerate(cases()):
                took = figures[str(number)]
                rows[case, layout] = row_of(
                    len(measured.ids), took["bytes"], took["encode_seconds"], took["decode_seconds"],
                    float16_kl(of(measured), draws),
                )  # fmt: skip
    return rows


def measure_all(sample: Captured, measured: Captured, interpreter: str) -> list[dict[str, Any]]:
    by_peers = measure_peers(measured, interpreter)
    rows = []
    for case, draws, of in cases():
        targets = of(measured)
        kl = float16_kl(targets, draws)

        def add(layout: str, figures: dict[str, Any], case: str = case) -> None:
            rows.append({"targets": case, "layout": layout} | figures)

        for codec in ("compact-1", "plain-1"):
            add(codec, measure_codec(codec, sample, measured, of, draws))
        add("Arrow", measure_file(measured, targets, kl, arrow_file, lambda d: pa.ipc.open_file(d).read_all()))
        add("Parquet + zstd", measure_file(measured, targets, kl, parquet_file, lambda d: pq.read_table(io.BytesIO(d))))
        add("JSON lines", measure_file(measured, targets, kl, json_lines, read_json_lines))
        for layout in peers.PACKAGES:
            if (case, layout) in by_peers:
                add(layout, by_peers[case, layout])
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
    parser.add_argument("--plot", type=Path, help="a .png or .svg to draw bytes against KL in")
    parser.add_argument(
        "--peers", default=sys.executable, help="the interpreter that has MosaicML Streaming and litData"
    )
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
        "rows": measure_all(*halves, options.peers),
    }
    if options.plot:
        report["rate_distortion"] = plot.sweep(*halves)
        plot.draw(report, options.plot)
    if options.json:
        print(json.dumps(report))
    else:
        print_table(report)


if __name__ == "__main__":
    main()
