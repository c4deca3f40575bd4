"""The page says what the numbers say, asks for nothing outside itself, and is the same for the same report."""

from __future__ import annotations

import copy
import re
from html import unescape
from typing import Any

import pytest

from distributed_kd.evaluate.page.render import render
from distributed_kd.evaluate.page.verdict import verdict

BETTER = {"cross_entropy": (-0.37, -0.29), "kl_from_teacher": (-0.46, -0.41), "agreement": (0.042, 0.061)}
UNCLEAR = {"cross_entropy": (-0.37, 0.01), "kl_from_teacher": (-0.1, 0.1), "agreement": (-0.001, 0.061)}
WORSE = {"cross_entropy": (0.29, 0.37), "kl_from_teacher": (0.41, 0.46), "agreement": (-0.061, -0.042)}


def figures(cross_entropy: float, kl: float, agreement: float, accuracy: float, parameters: int) -> dict[str, Any]:
    return {
        "cross_entropy": cross_entropy, "perplexity": 2.718**cross_entropy, "kl_from_teacher": kl,
        "agreement": agreement, "accuracy": accuracy, "ece": 0.04, "parameters": parameters,
        "positions_per_second": 4e10 / parameters,
    }  # fmt: skip


def report(intervals: dict[str, tuple[float, float]] = BETTER, **changed: Any) -> dict[str, Any]:
    return {
        "models": {
            "teacher": figures(3.63, 0.0, 1.0, 0.33, 134_515_008),
            "student": figures(4.785, 1.425, 0.399, 0.2068, 81_413_568),
            "baseline": figures(5.119, 1.858, 0.348, 0.1946, 81_413_568),
        },
        "retention": 0.6266, "retention_interval": [0.601, 0.6525],
        "held_out": {"split": "validation", "documents": 29, "sequences": 29, "positions": 7395},
        "differences": {
            key: {"difference": (low + high) / 2, "interval": [low, high]} for key, (low, high) in intervals.items()
        },
        "documents_won": 23,
        "cache": {
            "positions": 8415, "sequences": 33, "shards": 9, "missing_shards": [], "method": "top_k", "k": 64,
            "temperatures": [1.0, 2.0], "bytes_total": 1_879_954, "bytes_per_position": 223.405,
            "bytes_by_part": {"levels": 784_247, "ids": 1_095_707, "tables": 0}, "mean_kept_mass": 0.8713,
            "codec": "plain-1", "teacher": "t", "tokenizer_sha256": "1c98" * 16, "fingerprint": "299f" * 16,
        },
        "stages": {
            "prepare": {"seconds": 44.3, "peak_memory_bytes": 1_681_108_992},
            "train": {"seconds": 180.1, "peak_memory_bytes": 1_697_497_088, "device_seconds": 1440.8},
        },
        "recipe": {
            "name": "demo", "objective": {"alpha": 0.8}, "baseline": {"learning_rate": 0.0002},
            "trainer": {"epochs": 3, "steps": None, "global_batch": 2, "learning_rate": 0.001},
            "evaluate": {"bootstrap": 10_000},
        },
        "fingerprints": {"sequences": "e0ac" * 16, "cache": "299f" * 16},
        "calibration": CALIBRATION,
        "by_teacher_entropy": [
            {
                "entropy": [0.5 * place, 0.5 * place + 0.4], "mean": 0.5 * place + 0.2, "positions": 740,
                "models": {
                    arm: {"agreement": 0.9 - place / 20 - shift, "kl_from_teacher": 1.2 + place / 9 + shift}
                    for arm, shift in (("student", 0.0), ("baseline", 0.06))
                },
            }
            for place in range(10)
        ],
        "examples": [example(reason, f" word{place}") for place, reason in enumerate(("largest", "smallest", "drawn"))],
        "kept_mass_by_k": {"temperature": 1.0, "positions": 4096, "k": [1, 2, 4, 64], "mass": [0.4, 0.5, 0.61, 0.87]},
        "audit": audit(),
    } | changed  # fmt: skip


def example(reason: str, label: str) -> dict[str, Any]:
    best = [{"id": 9 + place, "text": f" best\n{place}", "probability": 0.4 / (1 + place)} for place in range(5)]
    best[2] |= {"id": 7, "text": label}
    return {
        "chosen": reason, "sequence": 12, "document": 2**62, "position": 88, "before": "My fellow\ncitizens, the state",
        "after": "", "label": {"id": 7, "text": label}, "teacher_entropy": 3.21,
        "models": {
            name: {"kl_from_teacher": kl, "best": best}
            for name, kl in (("teacher", 0.0), ("student", 2.345), ("baseline", 3.456))
        },
    }  # fmt: skip


def audit() -> dict[str, Any]:
    def at(k: int) -> dict[str, Any]:
        return {
            "1": {"truncation": 2.0 / k, "kept_mass": 1 - 2 / k},
            "2": {"truncation": 3.0 / k, "kept_mass": 1 - 4 / k},
        }

    return {
        "fingerprint": "299f" * 16, "method": "top_k", "positions": 4080, "sequences": 16, "bytes_per_position": 84.5,
        "temperatures": {"1": {"kl": 0.0316, "quantisation": 0.0003}, "2": {"kl": 0.05, "quantisation": 0.0001}},
        "alternatives": [
            {"k": k, "present": k == 64, "bytes_per_position": 30.0 + k, "temperatures": at(k)}
            for k in (16, 32, 64, 128)
        ],
    }  # fmt: skip


def without_baseline() -> dict[str, Any]:
    alone = report()
    del alone["differences"], alone["documents_won"], alone["models"]["baseline"]
    alone["recipe"]["baseline"] = None
    return alone


METRICS = {
    arm: [
        {"step": step, "loss": 3.0, "divergence": 2.0 / (1 + step) + shift, "cross_entropy": 5.0 - step / 10 + shift}
        for step in range(20)
    ]
    for arm, shift in (("student", 0.0), ("baseline", 0.4))
}
CALIBRATION = {
    model: [{"confidence": 0.1 * n, "accuracy": 0.09 * n, "positions": 100.0 / n} for n in range(1, 10)]
    for model in ("teacher", "student", "baseline")
}


def words(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page.partition("</style>")[2])).split())


@pytest.mark.parametrize(
    ("intervals", "headline", "outcome"),
    [
        (BETTER, "The distilled student is better than the same student trained on hard labels alone.", "better"),
        (
            UNCLEAR,
            "The distilled student cannot be told apart from the same student trained on hard labels alone.",
            "cannot be told apart",
        ),
        (WORSE, "The distilled student is worse than the same student trained on hard labels alone.", "worse"),
    ],
)
def test_verdict_follows_the_numbers(intervals: dict[str, tuple[float, float]], headline: str, outcome: str) -> None:
    found = verdict(report(intervals))
    assert found.headline == headline
    assert [row.outcome for row in found.comparisons] == [outcome] * 3
    assert {row.zero == "which includes zero" for row in found.comparisons} == {intervals is UNCLEAR}
    said = " ".join(found.sentences)
    assert "lower cross-entropy in 23 of 29 held-out documents" in said
    assert "learning rate 0.0002 where the student has 0.001" in said
    assert "62.7% of the teacher\u2019s (95%: 60.1% to 65.2%; the baseline\u2019s: 59.0%)" in said
    assert "60.5% of the teacher\u2019s parameters" in said
    assert "1.65 times as many positions a second" in said
    assert "8,415 positions, 3 times each" in said


def test_mixed_verdict_names_each_figure() -> None:
    mixed = BETTER | {"kl_from_teacher": UNCLEAR["kl_from_teacher"], "agreement": WORSE["agreement"]}
    assert verdict(report(mixed)).headline == (
        "Against the same student trained on hard labels alone, the distilled student is better in cross-entropy, "
        "is worse in top-1 agreement and cannot be told apart in KL from the teacher."
    )


@pytest.mark.parametrize("interval", [(-0.1, 0.0), (0.0, 0.1), (float("nan"), float("nan"))])
def test_an_interval_that_touches_zero_tells_nothing_apart(interval: tuple[float, float]) -> None:
    assert verdict(report({"cross_entropy": interval})).comparisons[0].outcome == "cannot be told apart"


def test_one_document_tells_nothing_apart() -> None:
    one = report(held_out={"split": "validation", "documents": 1, "sequences": 1, "positions": 255})
    assert {row.outcome for row in verdict(one).comparisons} == {"cannot be told apart"}


def test_no_interval_edge_is_rounded_to_zero() -> None:
    row = verdict(report({"cross_entropy": (-0.2, -0.00004)})).comparisons[0]
    assert (row.outcome, row.high) == ("better", "\u22120.00004")


def test_the_caution_about_few_positions_ends_where_there_are_many() -> None:
    assert "shrink with more data" in verdict(report()).sentences[-1]
    many = report()
    many["cache"] |= {"positions": 20_000_000, "sequences": 80_000}
    many["recipe"]["trainer"] |= {"epochs": None, "steps": 60_000}
    assert verdict(many).sentences[-1] == "The student was trained on 20,000,000 positions, 1.5 times each."


def test_the_verdict_stands_first_then_what_it_took_and_what_it_rests_on() -> None:
    assert re.findall(r'<h2 id="(\w+)"', render(report(), METRICS)) == [
        "verdict", "stages", "training", "models", "differences", "calibration", "entropy", "cache", "audit",
        "examples", "recipe",
    ]  # fmt: skip


def test_retention_has_its_interval() -> None:
    page = words(render(report(), METRICS))
    assert "retention 95% interval 100.0% 62.7% 60.1% to 65.2% 59.0%" in page
    assert "Retention: its share of the teacher\u2019s." in page
    older = report()
    del older["retention_interval"]
    assert "retention 95% interval 100.0% 62.7% 59.0%" in words(render(older, METRICS))


def test_the_page_asks_for_nothing_outside_itself() -> None:
    page = render(report(), METRICS)
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert " src=" not in page
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "#0a0b1" not in page  # a colour that stands for a variable of the style sheet
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert page.count('<svg class="plot"') == page.count('role="img"') == 11
    assert re.findall(r"<h(\d)", page)[0] == "1"


def test_hostile_strings_are_text() -> None:
    hostile = '"><script>alert(1)</script><img src=x onerror=$alert$(2)>'
    bad = report()
    bad["recipe"]["name"] = bad["cache"]["teacher"] = hostile
    bad["models"][hostile] = bad["models"]["teacher"]
    bad["models"]["student"][hostile] = bad["models"]["baseline"][hostile] = 1.0
    bad["differences"][hostile] = {"difference": 0.1, "interval": [0.0, 0.2]}
    bad["calibration"] = CALIBRATION | {hostile: CALIBRATION["teacher"]}
    for one in bad["examples"]:
        one["before"] = one["after"] = one["label"]["text"] = one["models"]["student"]["best"][0]["text"] = hostile
    for one in (bad["audit"], *bad["audit"]["alternatives"]):
        one["temperatures"][hostile] = one["temperatures"]["1"]
    page = render(bad, METRICS)
    assert "<script" not in page
    assert "<img" not in page
    assert hostile in words(page)


def test_without_a_baseline_the_verdict_speaks_of_the_teacher_alone() -> None:
    page = words(render(without_baseline(), {"student": METRICS["student"]}))
    assert "The distilled student\u2019s accuracy is 62.7% of the teacher\u2019s (95%: 60.1% to 65.2%)." in page
    assert "cross-entropy is 4.785 nats against 3.630 nats" in page
    assert "No baseline was trained" in page
    assert "Student minus baseline" not in page
    assert "told apart" not in page


def test_what_the_cache_holds_and_what_else_it_might() -> None:
    page = words(render(report(), METRICS))
    assert "What fewer ids would have kept, of 4,096 positions of the cache." in page
    assert "on 4,080 positions of 16 sequences. As it is, the cache is 0.0316 nats a position at T = 1" in page
    assert "64 94.0 0.0312 96.9% 0.0469 93.8%" in page
    whole = render(report(), METRICS)
    shown = whole.partition('<h2 id="audit">')[2].partition("<h2 ")[0]
    labels = [unescape(one) for one in re.findall(r'<svg class="plot" [^>]* role="img" aria-label="([^"]*)"', shown)]
    along = "over ids kept a position, K, ids kept a position, K from 16 to 128: at T = 1"
    costs = "from 0.125 to 0.0156 and at T = 2 from 0.188 to 0.0234"
    assert labels == [
        f"KL of what is left out, nats {along} {costs}",
        f"teacher mass kept {along} from 0.875 to 0.984 and at T = 2 from 0.75 to 0.969",
        f"KL of what is left out, nats over bytes a position, bytes a position from 46 to 158: at T = 1 {costs}",
    ]
    ids = re.findall(r' id="([^"]*)"', whole)
    assert len(ids) == len(set(ids)), "two elements of one id: a plot would show the other's parts"
    for place, name in enumerate(("audit-cost", "audit-mass", "audit-bytes")):
        plot = shown.split('<svg class="plot"')[place + 1].partition("</svg>")[0]
        own = re.findall(r' id="([^"]*)"', plot)
        assert own and all(one.startswith(f"{name}-") for one in own)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', plot)) == set(own)
    drawn = report()["audit"] | {"method": "sample", "temperatures": {"1": {"squared_error": 0.02}}}
    drawn["alternatives"] = [
        {
            "draws": draws, "present": False, "bytes_per_position": 9.0 + draws,
            "temperatures": {"1": {"squared_error_expected": 1 / draws, "kept_mass": 0.5}},
        }
        for draws in (10, 20)
    ]  # fmt: skip
    page = words(render(report(audit=drawn), METRICS))
    assert "draws bytes a position squared error T = 1 kept mass T = 1 10 19.0 0.1 50.0%" in page
    assert "from the teacher. The plots" not in page
    alone = report()["audit"]
    alone["alternatives"] = alone["alternatives"][:1]
    page = words(render(report(audit=alone, kept_mass_by_k={"temperature": 1.0, "k": [1], "mass": [1.0]}), METRICS))
    assert "dkd audit" not in page and "What fewer ids" not in page


def test_where_the_teacher_is_certain_and_single_positions() -> None:
    page = words(render(report(), METRICS))
    assert "0.50\u20130.90 740 85.0% 79.0% 1.311 1.371" in page
    assert (
        "Where the student is furthest from the teacher My fellow\u23cecitizens, the state \u2423word0 teacher" in page
    )
    assert "\u2423best\u23ce0 40.0% \u2423best\u23ce0 40.0% \u2423best\u23ce0 40.0%" in page
    assert "KL from the teacher in nats: student 2.345, baseline 3.456. The teacher\u2019s entropy: 3.210." in page
    assert render(report(), METRICS).count('<td class="right">') == 9
    bare = report()
    for key in ("by_teacher_entropy", "examples", "calibration"):
        del bare[key]
    assert "Held-out positions" not in render(bare, METRICS)


def test_hours_of_devices_have_a_price_where_the_recipe_says_one() -> None:
    page = words(render(report(), {}))
    assert "train 180.1 80.3% 0.4 1.58 GiB" in page and "Time, devices and memory" in page
    priced = report()
    priced["recipe"]["evaluate"]["price_hour"] = 2.5
    page = words(render(priced, {}))
    assert "Time, cost and memory" in page
    assert "prepare 44.3 19.7% \u2013 \u2013 1.57 GiB" in page
    assert "train 180.1 80.3% 0.4 1.00 1.58 GiB all 224.4 0.4 1.00" in page


def test_fields_may_be_missing_or_new() -> None:
    other = report(
        transferred_share=0.41,
        transferred_share_interval=[-0.3, 0.52],
        later_share=[0.1, 0.2],
        notes={"any": ["thing"]},
    )
    other["models"]["ensemble"] = {"cross_entropy": 3.5, "brier": 0.2}
    del other["models"]["student"]["perplexity"], other["cache"]["mean_kept_mass"]
    without_labels = [{key: line[key] for key in ("step", "divergence")} for line in METRICS["student"]]
    page = words(render(other, {"student": without_labels, "baseline": METRICS["baseline"]}))
    assert "later share 0.1 to 0.2" in page
    assert (
        "Of what the mean of its teachers gains in accuracy over the baseline, it has 41.0% (95%: \u221230.0% to 52.0%)"
        in page
    )
    assert "No cross-entropy was computed for the student, which never reads the hard labels." in page
    on_labels = [{key: line[key] for key in ("step", "cross_entropy")} for line in METRICS["baseline"]]
    page = words(render(other, {"student": METRICS["student"], "baseline": on_labels}))
    assert "No divergence from the teacher was computed for the baseline, which reads the hard labels alone." in page
    assert render({"models": {"teacher": {}, "student": {}}}, {})
    page = words(render({"models": {"student": {"accuracy": 0.5}}, "retention": None}, {}))
    assert (
        "Trained on hard labels alone, the student is right in 50.0% of held-out positions. It has no teacher" in page
    )
    assert "retention" not in page
    page = words(render({"models": {"student": {"kl_from_teacher": -1e-9, "brier": -0.25}}}, {}))
    assert "\u22120.000" not in page and "\u22120.250" in page


def test_the_same_report_gives_the_same_bytes() -> None:
    first = render(report(), METRICS)
    assert render(copy.deepcopy(report()), copy.deepcopy(METRICS)) == first
