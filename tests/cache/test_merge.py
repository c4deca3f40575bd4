"""dkd merge: caches over the same sequences become one that every reader takes, taken up where it was left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_kd import cache
from distributed_kd.cache import codecs
from distributed_kd.cache.ensemble import Member, mean_of
from distributed_kd.cache.inspect import inspect
from distributed_kd.cache.manifest import CacheManifest, put_tables, refuse_not_captured
from distributed_kd.cache.merge import merge
from distributed_kd.cache.receipts import Receipts
from distributed_kd.cache.shard import Row
from distributed_kd.cache.verify import verify
from distributed_kd.cache.writer import commit, put_rows
from distributed_kd.errors import RequestError
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.filesystem import Store
from distributed_kd.store.index import shard_name
from tests.cache.caches import TEMPERATURES, make_rows
from tests.cache.test_codec_compact import V, teacher
from tests.commands import dkd, said

SHARDS, ROWS, K = 3, 4, 6


def write_member(
    folder: Path,
    number: int,
    k: int = K,
    codec: str = "plain-1",
    method: str = "top_k",
    change: Any = None,
    **keys: Any,
) -> str:
    """A finished cache of teacher `number`, over the sequences that all have; `change(rows)` changes each shard's."""
    store = Store(str(folder / f"member-{number}"))
    made_from = {"sequences": "of all", "teacher": number, "keys": repr(keys)} | keys.pop("made_from", {})
    temperatures = tuple(keys.pop("temperatures", TEMPERATURES))
    build = codecs.find(codec).build_tables
    tables = build(*teacher(400, k, temperatures, seed=99), V, 0) if build else None
    manifest = CacheManifest.model_validate(
        {
            "made_from": made_from, "fingerprint": fingerprint(made_from), "codec": codec,
            "teacher": f"teacher-{number}", "revision": None, "tokenizer_sha256": "0" * 64, "vocabulary_size": V,
            "packing": "isolate", "method": method, "k": k, "temperatures": list(temperatures), "shards": SHARDS,
            "tables": put_tables(store, tables) if tables is not None else None, "index": None,
        } | keys
    )  # fmt: skip
    receipts = Receipts(manifest.fingerprint, manifest.shards)
    for shard in range(manifest.shards):
        rows = [
            Row(row.sequence, with_targets(row, k, temperatures, 1000 * number, method))
            for row in make_rows(ROWS * shard, ROWS)
        ]
        receipts[shard] = put_rows(store, manifest, shard, rows if change is None else change(rows), tables)
    commit(store, manifest, receipts)
    return store.uri


def with_targets(row: Row, k: int, temperatures: tuple[float, ...], seed: int, method: str) -> Any:
    targets, _ = teacher(len(row.targets), k, temperatures, seed=seed + row.sequence.sequence_id)
    if method != "full":
        return targets
    order = np.argsort(targets.ids, axis=1)
    ids, logits = (np.take_along_axis(array, order, axis=1) for array in (targets.ids, targets.logits))
    return replace(targets, ids=ids, logits=logits)


def files_of(folder: Path) -> dict[str, bytes]:
    """Without how long it took."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_a_merge_reads_as_the_mean_of_what_its_members_hold(tmp_path: Path, mean: str) -> None:
    uris = [write_member(tmp_path, 1), write_member(tmp_path, 2, k=9, codec="compact-1")]
    out = str(tmp_path / "out")
    manifest = merge(uris, out, [3.0, 1.0], mean)
    opened, members = cache.open(out), [cache.open(uri) for uri in uris]
    assert len(opened) == SHARDS * ROWS
    for index in range(len(opened)):
        row, rows = opened[index], [member[index] for member in members]
        np.testing.assert_array_equal(row.sequence.input_ids, rows[0].sequence.input_ids)
        expected, _ = mean_of([Member(one.targets, V) for one in rows], [0.75, 0.25], mean, keeps_all=False)
        width = expected.ids.shape[1]
        np.testing.assert_array_equal(row.targets.ids[:, :width], expected.ids)
        for temperature in TEMPERATURES:
            for found, wanted in zip(
                row.targets.log_probabilities(temperature), expected.log_probabilities(temperature), strict=True
            ):
                np.testing.assert_allclose(found[..., :width] if found.ndim == 2 else found, wanted, rtol=1e-5)
    assert (manifest.method, manifest.k, manifest.codec) == ("top_k", 15, "plain-1")
    assert manifest.teacher == "teacher-1 (0.75), teacher-2 (0.25)"
    facts = inspect(out)
    assert facts["merge"]["weights"] == [0.75, 0.25] and facts["merge"]["mean"] == mean
    assert facts["merge"]["members"] == [member.manifest.fingerprint for member in members]
    kept = [1 / (1 + np.exp(opened[index].targets.tail_odds[:, 0])) for index in range(len(opened))]
    assert facts["mean_kept_mass"] == pytest.approx(np.concatenate(kept).mean(), rel=1e-6)
    assert verify(out, 1).all_good


def test_the_bound_on_the_error_is_recorded_over_all_positions(tmp_path: Path) -> None:
    uris = [write_member(tmp_path, number, k=2 + number) for number in (1, 2)]
    merge(uris, str(tmp_path / "out"))
    members = [cache.open(uri) for uri in uris]
    bounds = np.concatenate(
        [
            mean_of([Member(member[index].targets, V) for member in members], [0.5, 0.5], "arithmetic", False)[1]
            for index in range(len(members[0]))
        ]
    )
    assert bounds.shape[1] == len(TEMPERATURES) and bounds.min() > 0
    found = inspect(str(tmp_path / "out"))["merge"]["error_bound"]
    np.testing.assert_allclose(found["mean"], bounds.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found["maximum"], bounds.max(axis=0), rtol=1e-9)

    # Nothing is known of what a merge does not keep, and of a geometric mean.
    merge([*uris, str(tmp_path / "out")], str(tmp_path / "again"))
    merge(uris, str(tmp_path / "logits"), mean="geometric")
    for name in ("again", "logits"):
        assert inspect(str(tmp_path / name))["merge"]["error_bound"] is None


@pytest.mark.parametrize(
    ("mean", "temperatures", "codec"),
    [("geometric", (1.0, 2.0), "dense-1"), ("arithmetic", (2.0,), "dense-1"), ("arithmetic", (1.0, 2.0), "plain-1")],
)
def test_members_that_keep_all_give_one_that_does(
    tmp_path: Path, mean: str, temperatures: tuple[float, ...], codec: str
) -> None:
    """Each id's probability is the dense mean's at every temperature, within what the codecs round."""
    uris = [
        write_member(tmp_path, number, k=V, codec="dense-1", method="full", temperatures=temperatures)
        for number in (1, 2)
    ]
    manifest = merge(uris, str(tmp_path / "out"), [0.6, 0.4], mean)
    assert (manifest.method, manifest.k, manifest.codec) == ("full", V, codec)
    opened, members = cache.open(str(tmp_path / "out")), [cache.open(uri) for uri in uris]
    for temperature in temperatures:
        worst = 0.0
        for index in range(1, len(opened)):
            first, second = (
                member[index].targets.log_probabilities(temperature)[0].astype(float) for member in members
            )
            if mean == "arithmetic":
                expected = np.logaddexp(np.log(0.6) + first, np.log(0.4) + second)
            else:
                expected = 0.6 * first + 0.4 * second
                expected -= np.logaddexp.reduce(expected, axis=1)[:, None]
            row = opened[index].targets
            assert (row.ids == np.arange(V)).all() and np.isneginf(row.tail_odds).all()
            found = row.log_probabilities(temperature)[0]
            worst = max(worst, float((np.exp(expected) * (expected - found)).sum(axis=1).max()))
        assert worst < (1e-3 if codec == "dense-1" else 1e-6)
    assert verify(str(tmp_path / "out"), 1).all_good


def test_drawn_caches_are_pooled(tmp_path: Path) -> None:
    def no_tail(rows: list[Row]) -> list[Row]:
        return [
            Row(row.sequence, replace(row.targets, tail_odds=np.full_like(row.targets.tail_odds, -np.inf)))
            for row in rows
        ]

    uris = [write_member(tmp_path, number, method="sample", change=no_tail) for number in (1, 2)]
    manifest = merge(uris, str(tmp_path / "out"))
    assert manifest.method == "sample" and manifest.merge is not None and manifest.merge.error_bound is None
    assert manifest.mean_kept_mass == pytest.approx(1.0)
    with pytest.raises(RequestError, match=r"member-1 holds drawn ids, .*member-2 holds drawn ids"):
        merge(uris, str(tmp_path / "other"), mean="geometric")
    # What is drawn in part is an estimate as well.
    assert merge([uris[0], write_member(tmp_path, 3)], str(tmp_path / "mixed")).method == "sample"


def test_a_merge_goes_on_where_it_was_and_ends_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was lost before its commit. Once it is finished nothing is written."""
    monkeypatch.delenv("DKD_QUIET", raising=False)
    uris, out = [write_member(tmp_path, 1), write_member(tmp_path, 2)], tmp_path / "out"
    merge(uris, str(out))
    whole = files_of(out)
    merge(uris, str(tmp_path / "other"))
    assert files_of(tmp_path / "other") == whole

    manifest = CacheManifest.read(Store(str(out)))
    assert manifest is not None and manifest.merge is not None
    unfinished = manifest.merge.model_copy(update={"error_bound": None})
    manifest.model_copy(update={"index": None, "bytes_by_part": None, "mean_kept_mass": None, "merge": unfinished}).put(
        Store(str(out))
    )
    (out / "index.arrow").unlink()
    (out / "receipts" / "00000000.json").unlink()
    (out / shard_name(2)).unlink()
    with pytest.raises(RequestError, match="unfinished cache; run `dkd merge` to finish it"):
        cache.open(str(out))
    untouched = (out / shard_name(1)).stat().st_mtime_ns
    merge(uris, str(out))
    assert "1 of 3 shards are there already" in capsys.readouterr().err
    assert files_of(out) == whole
    assert (out / shard_name(1)).stat().st_mtime_ns == untouched

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert merge(uris, str(out)).fingerprint == manifest.fingerprint
    assert "merge: done already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_caches_that_do_not_fit_are_refused_with_all_that_differs(tmp_path: Path) -> None:
    good = write_member(tmp_path, 1)
    other = write_member(
        tmp_path, 2, made_from={"sequences": "others"}, tokenizer_sha256="1" * 64, temperatures=(1.0, 3.0),
        packing="none", shards=2,
    )  # fmt: skip
    smaller = write_member(tmp_path, 3, vocabulary_size=V + 8)
    with pytest.raises(RequestError) as told:
        merge([good, smaller, other], str(tmp_path / "out"), mean="geometric")
    line = str(told.value)
    assert "\n" not in line and f"{other} is not as {good}" in line
    for part in (
        'sequences: "others", not "of all"', 'tokenizer_sha256: "1111', "temperatures: [1.0,3.0], not [1.0,2.0]",
        'packing: "none", not "isolate"', "shards: 2, not 3", f"one vocabulary, these have [{V}, {V + 8}] ids",
    ):  # fmt: skip
        assert part in line
    assert not (tmp_path / "out").exists()
    manifest = merge([good, smaller], str(tmp_path / "out"))
    assert manifest.vocabulary_size == V + 8


def other_ids(rows: list[Row]) -> list[Row]:
    rows[2].sequence.input_ids[0] ^= 1
    return rows


def other_numbers(rows: list[Row]) -> list[Row]:
    return [Row(replace(row.sequence, sequence_id=row.sequence.sequence_id + 1), row.targets) for row in rows]


def other_mask(rows: list[Row]) -> list[Row]:
    """As many positions, others of them."""
    mask = rows[1].sequence.loss_mask
    mask[:] = np.roll(mask, 1)
    return rows


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (other_ids, r"shard 0, sequence 2: \S+member-2 has another sequence there than \S+member-1"),
        (other_numbers, "shard 0, sequence 0: "),
        (other_mask, "shard 0, sequence 1: "),
        (lambda rows: rows[:3], r"shard 0 has 4 sequences in \S+member-1 and 3 in \S+member-2"),
    ],
)
def test_another_sequence_is_refused_by_shard_and_sequence(tmp_path: Path, change: Any, expected: str) -> None:
    uris = [write_member(tmp_path, 1), write_member(tmp_path, 2, change=change)]
    with pytest.raises(RequestError, match=expected):
        merge(uris, str(tmp_path / "out"))


@pytest.mark.slow
def test_processes_give_the_same_bytes_and_the_same_refusals(tmp_path: Path) -> None:
    uris = [write_member(tmp_path, 1), write_member(tmp_path, 2)]
    for jobs in (1, 2):
        merge(uris, str(tmp_path / f"out-{jobs}"), jobs=jobs)
    assert files_of(tmp_path / "out-2") == files_of(tmp_path / "out-1")
    uris.append(write_member(tmp_path, 3, change=other_ids))
    with pytest.raises(RequestError, match=r"shard \d, sequence \d+: \S+member-3 has another sequence there"):
        merge(uris, str(tmp_path / "out"), jobs=2)


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    uris = [write_member(tmp_path, 1), write_member(tmp_path, 2)]
    (tmp_path / "member-2" / shard_name(1)).write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"member-2 cannot be merged: .*00000001\.arrow is damaged"):
        merge(uris, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0], "has 1 numbers for 2 caches"),
        ([1.0, 0.0], "each must be a finite number above 0"),
        ([1.0, -1.0], "each must be a finite number above 0"),
        ([1.0, np.nan], "each must be a finite number above 0"),
        ([1.0, np.inf], "each must be a finite number above 0"),
        ([1e308, 1e-308], "nothing beside the largest"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, weights: list[float], expected: str) -> None:
    uris = [write_member(tmp_path, 1), write_member(tmp_path, 2)]
    with pytest.raises(RequestError, match=expected):
        merge(uris, str(tmp_path / "out"), weights)


def test_an_out_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    uris = [write_member(tmp_path, number) for number in (1, 2, 3)]
    (tmp_path / "link").symlink_to(tmp_path / "member-1")
    before = files_of(tmp_path)
    for out in (uris[1], str(tmp_path / "link")):
        with pytest.raises(RequestError, match="is one of the caches to merge"):
            merge(uris[:2], out)
    with pytest.raises(RequestError, match=r"holds another cache .*members: nothing, not"):
        merge(uris[:2], uris[2])
    with pytest.raises(RequestError, match="two caches at least"):
        merge(uris[:1], str(tmp_path / "out"))
    assert files_of(tmp_path) == before
    merge(uris[:2], str(tmp_path / "out"), [1, 3])
    with pytest.raises(RequestError, match=r"weights: \[0.25,0.75\], not \[0.5,0.5\]"):
        merge(uris[:2], str(tmp_path / "out"))


def test_no_teacher_computes_a_merge_and_any_other_cache_is_none(tmp_path: Path) -> None:
    members = [write_member(tmp_path, number) for number in (1, 2)]
    store = Store(str(tmp_path / "out"))
    with pytest.raises(RequestError, match="out is a merge of 2 caches; delete it"):
        refuse_not_captured(merge(members, store.uri, jobs=1), store, "delete it")
    refuse_not_captured(cache.open(members[0]).manifest, store, "delete it")


def test_an_older_receipt_and_manifest_still_read(tmp_path: Path) -> None:
    """Files from before merges: without the fields that they brought."""
    store = Store(write_member(tmp_path, 1))
    for name in ("manifest.json", "receipts/00000000.json"):
        fields = json.loads(store.read(name))
        del fields["sha256"], fields["merge" if name == "manifest.json" else "error_bound"]
        store.put(name, json.dumps(fields).encode())
    manifest = CacheManifest.read(store)
    assert manifest is not None and manifest.merge is None
    assert len(Receipts.read_all(store, manifest.fingerprint, SHARDS)) == SHARDS


def test_the_command_merges_and_refuses_in_a_line(tmp_path: Path) -> None:
    uris, out = [write_member(tmp_path, 1), write_member(tmp_path, 2)], tmp_path / "out"
    done = dkd("merge", *uris, "--out", out, "--weights", "3,1", "--mean", "geometric", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == inspect(str(out))
    assert inspect(str(out))["merge"]["weights"] == [0.75, 0.25]
    done = dkd("merge", *uris, "--out", tmp_path / "other", "--weights", "3;1")
    assert done.returncode == 2
    assert "--weights 3;1 is not numbers with commas between them" in said(done)
    with pytest.raises(RequestError, match="--mean median is not one of arithmetic, geometric"):
        merge(uris, str(tmp_path / "other"), mean="median")
