"""dkd audit: its figures against the whole distribution in float64, computed here from the model's own forward."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_kd import cache
from distributed_kd.cache import codecs, shard
from distributed_kd.cache.audit_file import keep_audit, read_audit
from distributed_kd.cache.kept_mass import kept_mass_by_k
from distributed_kd.cache.manifest import CacheManifest, Receipt, put_tables
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.shard import Row
from distributed_kd.cache.soft_targets import SoftTargets
from distributed_kd.cache.writer import commit
from distributed_kd.errors import RequestError
from distributed_kd.models.locate import identity
from distributed_kd.recipe import Capture, Targets, Teacher
from distributed_kd.store.digest import fingerprint, sha256
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import ShardEntry, shard_name
from distributed_kd.teacher.audit import audit
from distributed_kd.teacher.forward import TeacherForward
from tests import toys
from tests.commands import dkd, said
from tests.teacher.test_targets import sequences_of

V = 72  # rows of the toy teacher's head


def make_cache(folder: Path, teacher: Path, codec: str, **targets: Any) -> tuple[Store, list[Row]]:
    """A finished cache of the toy teacher, one shard, without Ray."""
    keeps, capture = Targets(**targets), Capture(codec=codec, batch_tokens=64, head_chunk=16)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    packed = sequences_of(*[random.integers(2, 60, 16).tolist() for _ in range(40)])
    sequences = [replace(sequence, sequence_id=number) for number, sequence in enumerate(packed)]
    spec = Teacher(model=str(teacher), dtype="float32")
    soft = TeacherForward(spec, keeps, capture)(sequences)
    rows = [Row(sequence, own) for sequence, own in zip(sequences, soft, strict=True)]
    made_from = {
        "sequences": "test",
        "teacher": {"model": str(teacher), "revision": None, "dtype": "float32", **identity(teacher)},
        "targets": keeps.made_from(),
        "capture": {"codec": codec, "batch_tokens": 64, "head_chunk": 16},
    }
    key, build, tables = fingerprint(made_from), codecs.find(codec).build_tables, None
    if build is not None:
        tokens = np.concatenate([sequence.input_ids[sequence.loss_mask] for sequence in sequences])
        tables = build(SoftTargets.concatenate(soft), tokens, V, keeps.draws or 0)
    store = Store(str(folder))
    data, parts = shard.encode(rows, codec, key, 0, tables)
    store.put(shard_name(0), data)
    positions = sum(len(own) for own in soft)
    entry = ShardEntry(0, len(rows), positions, len(data), sha256(data))
    manifest = CacheManifest(
        made_from=made_from, fingerprint=key, codec=codec, teacher=str(teacher), revision=None,
        tokenizer_sha256="0" * 64, vocabulary_size=V, packing="none", method=keeps.method, k=keeps.keeps(V),
        temperatures=keeps.temperatures, shards=1, tables=put_tables(store, tables) if tables else None, index=None,
    )  # fmt: skip
    receipts = Receipts(key, 1)
    receipts[0] = Receipt(key, entry, parts, 0.5 * positions)
    commit(store, manifest, receipts)
    return store, rows


def whole(teacher: Path, rows: list[Row], temperature: float) -> torch.Tensor:
    """[positions, V] float64 log p of the model's own forward, a sequence at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    parts = []
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row.sequence.input_ids.astype(np.int64))[None]
            parts.append(model(input_ids=ids, use_cache=False).logits[0, row.sequence.loss_mask])
    return (torch.cat(parts).double() / temperature).log_softmax(dim=1)


@pytest.mark.parametrize("codec", ["plain-1", "compact-1"])
def test_the_kl_is_that_of_the_completed_distribution_and_splits_in_two(
    toy_teacher: Path, tmp_path: Path, codec: str
) -> None:
    store, _ = make_cache(tmp_path, toy_teacher, codec, k=8, temperatures=[1.0, 2.0])
    facts = audit(store.uri, positions=10**6)
    rows = next(iter(cache.open(store).batches(10**6)))
    assert facts["positions"] == sum(len(row.targets) for row in rows) == 600
    soft = SoftTargets.concatenate([row.targets for row in rows])
    for temperature in (1.0, 2.0):
        log_p = whole(toy_teacher, rows, temperature).numpy()
        kept, tail = soft.log_probabilities(temperature)
        completed = np.repeat((tail - np.log(V - 8))[:, None], V, axis=1).astype(np.float64)
        np.put_along_axis(completed, soft.ids.astype(np.int64), kept.astype(np.float64), axis=1)
        exact = (np.exp(log_p) * (log_p - completed)).sum(axis=1).mean()
        found = facts["temperatures"][f"{temperature:g}"]
        assert found["kl"] == pytest.approx(exact, rel=1e-3)
        assert found["truncation"] + found["quantisation"] == pytest.approx(found["kl"], rel=1e-9)
        assert -1e-7 < found["quantisation"] < 1e-3 < found["truncation"]
        mass = np.exp(np.take_along_axis(log_p, soft.ids.astype(np.int64), axis=1)).sum(axis=1)
        assert found["kept_mass"] == pytest.approx(mass.mean(), rel=1e-5)
        assert found["kept_mass_percentiles"]["p25"] == pytest.approx(np.percentile(mass, 25), rel=1e-5)


def test_other_ks_are_what_a_capture_with_them_would_keep(toy_teacher: Path, tmp_path: Path) -> None:
    store, _ = make_cache(tmp_path / "8", toy_teacher, "plain-1", k=8)
    others = {one["k"]: one for one in audit(store.uri, positions=10**6)["alternatives"]}
    assert [(k, one["present"]) for k, one in others.items()] == [
        (2, False), (4, False), (8, True), (16, False), (32, False),
    ]  # fmt: skip
    other, _ = make_cache(tmp_path / "16", toy_teacher, "plain-1", k=16)
    exact = audit(other.uri, positions=10**6)
    assert others[16]["temperatures"]["1"]["truncation"] == pytest.approx(exact["temperatures"]["1"]["truncation"])
    assert others[16]["bytes_per_position"] == pytest.approx(exact["bytes_per_position"], rel=0.05)
    sizes = [one["bytes_per_position"] for one in others.values()]
    assert sizes == sorted(sizes)


def test_drawn_ids_err_as_much_as_chance_does_at_any_temperature(toy_teacher: Path, tmp_path: Path) -> None:
    for name, temperatures, drawn_at in (("own", [1.0], 1.0), ("weighted", [2.0], 1.0)):
        store, rows = make_cache(
            tmp_path / name, toy_teacher, "plain-1", method="sample", draws=20, temperatures=temperatures,
            draw_temperature=drawn_at,
        )  # fmt: skip
        facts = audit(store.uri, positions=10**6)
        found = facts["temperatures"][f"{temperatures[0]:g}"]
        assert found["squared_error"] == pytest.approx(found["squared_error_expected"], rel=0.15)
        assert "kl" not in found
        by_draws = {one["draws"]: one["temperatures"] for one in facts["alternatives"]}
        assert list(by_draws) == [5, 10, 20, 40, 80]
        # float16 logits and weights are rounded; the alternatives are not
        assert by_draws[20][f"{temperatures[0]:g}"]["squared_error"] == pytest.approx(found["squared_error"], rel=1e-2)
    soft = SoftTargets.concatenate([row.targets for row in rows])
    assert soft.log_p is not None
    error = whole(toy_teacher, rows, 2.0).exp().numpy()
    for place in range(len(soft)):
        kept = soft.ids[place] >= 0
        error[place, soft.ids[place][kept]] -= np.exp(soft.log_p[place, 0][kept])
    assert found["squared_error"] == pytest.approx((error**2).sum(axis=1).mean(), rel=1e-2)


def test_full_and_top_p(toy_teacher: Path, tmp_path: Path) -> None:
    store, _ = make_cache(tmp_path / "full", toy_teacher, "dense-1", method="full", temperatures=[1.0, 4.0])
    for found in audit(store.uri)["temperatures"].values():
        assert found["truncation"] == 0.0
        assert 0.0 <= found["quantisation"] < 1e-3
    store, _ = make_cache(tmp_path / "top_p", toy_teacher, "compact-1", method="top_p", k=40, p=0.8)
    facts = audit(store.uri)
    assert [one["p"] for one in facts["alternatives"]] == [0.5, 0.8, 0.9, 0.95, 0.99]
    assert facts["temperatures"]["1"]["kept_mass_percentiles"]["p5"] >= 0.8 - 1e-6


def test_another_teacher_is_refused_and_a_moved_one_is_found(toy_teacher: Path, tmp_path: Path) -> None:
    moved = toys.save_model(tmp_path / "teacher", layers=4, seed=1, vocab_size=72)
    other = toys.save_model(tmp_path / "other", layers=4, seed=3, vocab_size=72)
    store, _ = make_cache(tmp_path / "cache", moved, "plain-1", k=8)
    expected = audit(store.uri, positions=100)["temperatures"]
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="no such folder"):
        audit(store.uri)
    assert audit(store.uri, str(tmp_path / "elsewhere"), positions=100)["temperatures"] == expected
    with pytest.raises(RequestError, match="is not the teacher of"):
        audit(store.uri, str(other))


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(toy_teacher: Path, tmp_path: Path) -> None:
    store, _ = make_cache(tmp_path / "cache", toy_teacher, "compact-1", k=8, temperatures=[1.0, 2.0])
    done = dkd("audit", store.uri, "--positions", "100")
    assert done.returncode == 0, done.stderr
    assert "other k" in done.stdout
    found = json.loads(dkd("audit", store.uri, "--positions", "100", "--json").stdout)
    assert found["temperatures"].keys() == {"1", "2"}
    done = dkd("audit", tmp_path)
    assert done.returncode == 2
    assert "holds no cache" in said(done)


def test_what_fewer_ids_would_have_kept_is_known_from_the_cache_alone(toy_teacher: Path, tmp_path: Path) -> None:
    store, _ = make_cache(tmp_path / "top_k", toy_teacher, "compact-1", k=6, temperatures=[1.0, 2.0])
    kept = kept_mass_by_k(cache.open(store), positions=10**6)
    assert kept is not None and (kept["temperature"], kept["positions"], kept["k"]) == (1.0, 600, [1, 2, 4, 6])
    log_p = whole(toy_teacher, next(iter(cache.open(store).batches(10**6))), 1.0)
    exact = log_p.exp().sort(dim=1, descending=True).values.cumsum(dim=1).mean(dim=0)
    assert kept["mass"] == pytest.approx([float(exact[k - 1]) for k in kept["k"]], rel=3e-3)  # of rounded levels
    some = kept_mass_by_k(cache.open(store), positions=100)
    assert some is not None and 100 <= some["positions"] < 120
    store, _ = make_cache(tmp_path / "full", toy_teacher, "dense-1", method="full")
    everything = kept_mass_by_k(cache.open(store))
    assert everything is not None and everything["k"] == [1, 2, 4, 8, 16, 32, 64, V]
    assert everything["mass"][-1] == pytest.approx(1.0)
    store, _ = make_cache(tmp_path / "sample", toy_teacher, "plain-1", method="sample", draws=20)
    assert kept_mass_by_k(cache.open(store)) is None


def test_an_audit_is_kept_for_the_cache_that_it_is_of(
    toy_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DKD_QUIET")
    store, _ = make_cache(tmp_path / "cache", toy_teacher, "plain-1", k=8)
    facts = audit(store.uri, positions=100)
    assert read_audit(store.uri, facts["fingerprint"]) is None
    keep_audit(store.uri, facts)
    found = read_audit(store.uri, cache.open(store).fingerprint)
    assert found is not None and found["alternatives"] == facts["alternatives"]
    assert found["temperatures"] == facts["temperatures"]
    assert read_audit(store.uri, "0" * 64) is None
    (tmp_path / "cache" / "audit.json").write_text('{"fingerprint": 1}')
    assert read_audit(store.uri, facts["fingerprint"]) is None
    assert "audit.json is damaged" in capsys.readouterr().err
    keep_audit(f"{tmp_path}/cache/manifest.json", facts)  # a folder that cannot be written to
    assert "audit: not kept for the report" in capsys.readouterr().err
