"""What halving a BERT's layers saves: parameters and processor time of a DistilBERT beside its BERT, weights random.

    python benchmarks/distilbert.py [--sizes bert-base minilm-l6] [--rounds 7] [--json]

In two forms: the encoder, and the masked language model, whose head over the vocabulary is not halved. In a round each
model takes a forward of the same tokens in turn, on one thread; times are medians over rounds, and `time_ratio` is the
median of BERT's by DistilBERT's in a round. All are processor time, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from transformers import BertConfig, DistilBertConfig

SIZES = {
    "bert-base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "minilm-l6": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12},
}
FORMS = {"encoder": ("BertModel", "DistilBertModel"), "masked LM": ("BertForMaskedLM", "DistilBertForMaskedLM")}


def pair(size: str, form: str) -> tuple[Any, Any]:
    """A BERT and the DistilBERT of half its layers."""
    bert = BertConfig(**SIZES[size])
    distilbert = DistilBertConfig(
        dim=bert.hidden_size, hidden_dim=bert.intermediate_size, n_heads=bert.num_attention_heads,
        n_layers=bert.num_hidden_layers // 2,
    )  # fmt: skip
    large, small = (getattr(transformers, name) for name in FORMS[form])
    return large(bert).eval(), small(distilbert).eval()


@torch.inference_mode()
def processor_seconds(model: Any, ids: torch.Tensor) -> float:
    begun = time.process_time()
    model(input_ids=ids)
    return time.process_time() - begun


def row(size: str, form: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    models = pair(size, form)
    ids = torch.randint(0, BertConfig().vocab_size, (options.sequences, options.length))
    rounds = [tuple(processor_seconds(model, ids) for model in models) for _ in range(options.rounds + 1)][1:]
    large, small = (sum(parameter.numel() for parameter in model.parameters()) for model in models)
    return {
        "size": size,
        "form": form,
        "bert_parameters": large,
        "distilbert_parameters": small,
        "fewer_parameters": 1 - small / large,
        "bert_seconds": statistics.median(own[0] for own in rounds),
        "distilbert_seconds": statistics.median(own[1] for own in rounds),
        "time_ratio": statistics.median(own[0] / own[1] for own in rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "machine": f"{platform.machine()}, one thread, load {os.getloadavg()[0]:.1f}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "shape": {key: getattr(options, key) for key in ("sequences", "length", "rounds")},
        "rows": [row(size, form, options) for size in options.sizes for form in FORMS],
    }
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['machine']}; torch {torch.__version__}; forward of {options.sequences} x {options.length} tokens")
    for own in found["rows"]:
        counts = f"{own['bert_parameters'] / 1e6:6.1f}M to {own['distilbert_parameters'] / 1e6:5.1f}M"
        print(
            f"{own['size']:10} {own['form']:10} {counts}, {own['fewer_parameters']:.1%} fewer; processor "
            f"{own['bert_seconds']:.2f} s to {own['distilbert_seconds']:.2f} s, {own['time_ratio']:.2f} times less"
        )


if __name__ == "__main__":
    main()
