"""The built-in speech: labels out of an alignment, rows out of utterances, and the real thing where it can be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from distributed_kd.corpus.builtin import prompts as sources
from distributed_kd.corpus.builtin import speech_unlabelled
from distributed_kd.corpus.builtin.filterbanks import BANDS, frames_of
from distributed_kd.corpus.builtin.prompts import Prompt, prompts
from distributed_kd.corpus.builtin.speech_align import CLASSES, align, frame_labels
from distributed_kd.corpus.builtin.speech_rows import Utterance, utterance, write_rows
from distributed_kd.corpus.builtin.speech_views import VIEWS
from distributed_kd.corpus.builtin.speech_words import spoken_words
from distributed_kd.errors import RequestError


def test_frames_take_the_states_of_their_phones_in_turn() -> None:
    labels = frame_labels([("SIL", [1, 1, 2]), ("HH", [1, 2, 1]), ("+NSN+", [1, 1, 1]), ("AW", [3, 1, 1])], 16)
    names = [CLASSES[label] for label in labels]
    assert names == (
        ["silence"] * 4 + ["HH.0", "HH.1", "HH.1", "HH.2"] + ["silence"] * 3 + ["AW.0"] * 3 + ["AW.1", "AW.2"]
    )
    assert labels.dtype == np.int32
    with pytest.raises(ValueError, match="4 frames are aligned of 5"):
        frame_labels([("SIL", [1, 1, 2])], 5)


def test_classes_are_silence_and_three_states_of_each_phone() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 1 + 38 * 3


def toy_row(prompt: Prompt) -> Utterance | None:
    """Noise as long as its name is; none of `bad`."""
    if prompt.name == "bad":
        return None
    samples = np.random.default_rng(len(prompt.name)).integers(-999, 999, 900 * len(prompt.name)).astype(np.int16)
    return utterance(prompt.name, [prompt.transcript], samples, np.arange(frames_of(len(samples)), dtype=np.int32))


@pytest.mark.slow
def test_a_file_holds_a_view_of_every_utterance(tmp_path: Path) -> None:
    given = [Prompt(name, f"says {name}", Path()) for name in ("one", "bad", *(f"more {n}" for n in range(40)))]
    for folder in ("first", "again"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder, given, toy_row)
    for view in range(len(VIEWS)):
        path, other = (tmp_path / folder / f"view-{view}.parquet" for folder in ("first", "again"))
        assert path.read_bytes() == other.read_bytes()
        table = pq.read_table(path)
        assert table.schema.names == ["utterance", "document", "view", "features", "labels"]
        assert json.loads(table.schema.metadata[b"classes"]) == list(CLASSES)
        assert json.loads(pq.read_metadata(path).metadata[b"left_out"]) == ["bad"]
        assert table["utterance"].to_pylist() == [prompt.name for prompt in given if prompt.name != "bad"]
        assert set(table["view"].to_pylist()) == {view}
        for row, made in zip(table.to_pylist(), (toy_row(p) for p in given if p.name != "bad"), strict=True):
            assert made is not None and row["document"] == made.document == f"says {made.name}"
            features, labels = made.views[view]
            np.testing.assert_array_equal(np.array(row["features"], np.float32), features)
            assert features.shape == (len(labels), BANDS) and row["labels"] == labels.tolist()


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "G722", None)
    with pytest.raises(RequestError, match=r"needs G722, .*: pip install 'distributed-kd\[speech\]'"):
        speech_unlabelled.write(tmp_path)
    monkeypatch.setattr(sources, "_VOICES", {"en": "nobody"})  # as where Asterisk's prompts are not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    packages = "asterisk-core-sounds-en-g722, asterisk-core-sounds-en"
    with pytest.raises(RequestError, match=f"{packages}, and there is no apt-get here"), prompts(["en"]):
        pass
    (tmp_path / "apt-get").write_text(
        "#!/bin/sh\necho 'W: old lists' >&2\necho 'E: Unable to locate package' >&2\nexit 100\n"
    )
    (tmp_path / "apt-get").chmod(0o755)
    with pytest.raises(RequestError, match=r"\(E: Unable to locate package\); run `apt-get update`"), prompts(["en"]):
        pass


@pytest.mark.slow
def test_real_prompts_are_aligned_whatever_was_before_them() -> None:
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed: the extra `speech`")
    pytest.importorskip("G722", reason="G722 is not installed: the extra `speech`")
    try:
        with prompts(["en"]) as found:
            kept = {prompt.name: prompt for prompt in found["en"] if prompt.name.startswith("digits/")}
            given = {name: (prompt.samples(), spoken_words(prompt.transcript)) for name, prompt in kept.items()}
    except RequestError as error:
        pytest.skip(str(error))
    assert len(given) == 94
    labels = {name: align(*given[name]) for name in given}  # one of them with noise at both ends: digits/mon-3
    for name in reversed(given):
        np.testing.assert_array_equal(align(*given[name]), labels[name], name)
    assert align(given["digits/1"][0], spoken_words("Thank you for trying out the open source exchange.")) is None

    lasts: dict[str, list[int]] = {}  # frames
    for name, found_labels in labels.items():
        assert found_labels is not None and len(found_labels) == frames_of(len(given[name][0])), name
        phones = (found_labels + 2) // 3
        begins = np.flatnonzero(np.diff(phones, prepend=-1))
        for begin, end in zip(begins, [*begins[1:], len(phones)], strict=True):
            lasts.setdefault(CLASSES[found_labels[begin]].partition(".")[0], []).append(end - begin)
    assert 3 <= np.median(lasts["T"]) <= 10 and np.median(lasts["AY"]) > 1.5 * np.median(lasts["T"])
