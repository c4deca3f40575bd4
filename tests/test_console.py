"""What a person sees: bars with rates and time left at a terminal, plain lines without one, nothing if quiet."""

from __future__ import annotations

import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distributed_kd import console
from distributed_kd.corpus import builtin
from distributed_kd.corpus.cut import survey
from distributed_kd.corpus.source import list_files
from distributed_kd.models import locate
from distributed_kd.recipe import Corpus


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> io.StringIO:
    """What is printed, at a terminal where the test is called so; a wait and a line's pause are short."""
    monkeypatch.delenv("DKD_QUIET", raising=False)
    monkeypatch.setattr(console, "_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(console, "_PLAIN_SECONDS", 0.1)
    written = io.StringIO()
    is_terminal = "terminal" in request.node.name
    made = Console(file=written, force_terminal=is_terminal, width=80, quiet=console.is_quiet(), highlight=False)
    monkeypatch.setattr(console, "console", lambda: made)
    return written


def work(steps: int = 8) -> None:
    with console.progress("verify", 8e6) as advance:
        pace = console.Pace("bytes")
        for step in range(steps + 1):
            advance(step * 1e6, pace(step * 1e6))
            time.sleep(0.03)


def test_a_bar_at_a_terminal_has_the_time_left_and_a_rate_beneath(out: io.StringIO) -> None:
    work()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).split("\n")
    assert re.fullmatch(r" +verify \S+ 8000000/8000000 0:00:00 left 0:00:00 *", shown[-3].split("\r")[-1])
    assert re.fullmatch(r" {10}[\d,]+ bytes/s *", shown[-2])


def test_a_long_note_at_a_terminal_is_cut_and_not_the_bar(out: io.StringIO) -> None:
    with console.progress("cache", 2535) as advance:
        advance(2535, "11 of 11 shards, 214 positions/s, 28 bytes a position, 1 replicas, 2 failures and more to tell")
    assert "2535/2535" in out.getvalue() and "\u2026" in out.getvalue() and "to tell" not in out.getvalue()


def test_what_is_said_beside_a_bar_at_a_terminal_stands_above_it(out: io.StringIO) -> None:
    with console.progress("cache", 10) as advance:
        advance(5, "a note")
        console.say("a replica was lost")
    assert out.getvalue().rindex("a replica was lost") < out.getvalue().rindex("5/10")


def test_one_console_prints_all() -> None:
    assert console.console() is console.console()


def test_lines_without_one_come_now_and_then_and_at_the_end(out: io.StringIO) -> None:
    work()
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 4
    assert all(re.search(r" after \d+ s, \d+ s left  ", line) for line in lines[:-1])
    assert "s left" not in lines[-1] and lines[-1].startswith("verify: 8,000,000 of 8,000,000 after ")
    assert all("bytes/s" in line for line in lines)


def test_work_that_has_not_moved_says_so(out: io.StringIO) -> None:
    with console.progress("cache", 100) as advance:
        for _ in range(8):
            advance(0, "1 replica")
            time.sleep(0.03)
    assert out.getvalue() == "cache: 0 of 100 after 0 s  1 replica\n"


def test_a_wait_at_a_terminal_is_shown_and_leaves_nothing(out: io.StringIO) -> None:
    with console.waiting("loading"):
        time.sleep(0.2)
    assert "loading" in out.getvalue() and "0:00:00" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")  # the line is erased


def test_a_wait_is_a_line_where_it_lasts(out: io.StringIO) -> None:
    with console.waiting("loading"):
        pass
    with console.waiting("converting"), console.waiting("of that a part"):
        time.sleep(0.2)
    with pytest.raises(KeyError), console.waiting("failing"):
        raise KeyError
    assert out.getvalue() == "converting\n"


@pytest.mark.parametrize("shown", [work, lambda: None])
def test_nothing_if_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: Any) -> None:
    monkeypatch.setattr(console, "_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("DKD_QUIET", "1")
    with console.waiting("loading"):
        shown()
        time.sleep(0.05)
    console.say("a word")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("done", "words"), [(5000, "500 x/s"), (3, "0.3 x/s"), (0, "0 x/s")])
def test_a_pace_in_words(monkeypatch: pytest.MonkeyPatch, done: int, words: str) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    pace = console.Pace("x")
    monkeypatch.setattr(time, "monotonic", lambda: 60.0)
    assert pace(done) == words


def test_the_bytes_of_a_source_are_counted_while_they_are_read(out: io.StringIO, tmp_path: Path) -> None:
    sizes = [7, 300_000, 5]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * size)
    corpus = Corpus(source=str(tmp_path))
    survey(list_files(corpus), corpus)
    assert out.getvalue().splitlines()[-1].startswith("survey: 300,012 of 300,012 after 0 s")


def test_a_source_that_is_made_here_says_so(out: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DKD_CACHE", str(tmp_path))
    monkeypatch.setattr("distributed_kd.corpus.builtin.digits.write", lambda _: time.sleep(0.2))
    builtin.resolve("builtin:digits")
    assert out.getvalue() == "making corpus.source builtin:digits, once on this machine\n"


def test_a_fetch_from_the_hub_has_the_bytes_of_all_files(
    out: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its client makes bars and moves them, from a thread a file, while libraries' own are switched off."""
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def fetching(repository: str, tqdm_class: Any, **_: Any) -> str:
        with tqdm_class(total=3, desc="Fetching 3 files"), tqdm_class(total=0, unit="B", unit_scale=True) as bar:
            time.sleep(0.2)  # asking which files there are

            def fetch(size: int) -> None:
                bar.total += size
                for _ in range(4):
                    time.sleep(0.15)
                    bar.update(size // 4)

            with ThreadPoolExecutor(3) as threads:
                list(threads.map(fetch, (400, 8_000, 4_000_000)))
                bar.refresh()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetching)
    assert locate.find("owner/model") == tmp_path
    first, *lines = out.getvalue().splitlines()
    assert first == "fetching owner/model from the hub"
    assert lines[-1].startswith("fetch: 4,008,400 of 4,008,400 after ") and "bytes/s" in lines[-1]
    assert len(lines) > 1 and all(line.startswith("fetch: ") for line in lines)
