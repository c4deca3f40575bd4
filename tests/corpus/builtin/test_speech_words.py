"""What the voice says where a transcript has notes, signs and numbers; whose lines these are."""

from __future__ import annotations

import pytest

from distributed_kd.corpus.builtin.prompts import parse_transcripts
from distributed_kd.corpus.builtin.speech_words import PRONUNCIATIONS, spoken_words, words_of


@pytest.mark.parametrize(
    ("transcript", "said"),
    [
        ("Goodbye!", "goodbye"),
        ("[sound of monkeys screaming]", ""),
        ("(10 seconds of silence)", ""),
        ("<beep ascending>", ""),
        ("at [@]", "at"),
        ("IAX (note: does not say \"2\")", "i a x"),
        ("Press 1 to ..., dial 8500.", "press one to dial eight five zero zero"),
        ("press * to toggle pause, press # to exit", "press star to toggle pause press pound to exit"),
        ("at least a 28.8 kilobit modem", "at least a twenty eight point eight kilobit modem"),
        ("visit www.asterisk.org.", "visit w w w dot asterisk dot org"),
        ("P.M.", "p m"),
        ("H.323", "h three two three"),
        ("3D audio disabled", "three d audio disabled"),
        ("Un-indentified or witheld", "unidentified or withheld"),
        ("your party's last name, o'clock", "your party's last name o'clock"),
        ('a polite "don\'t call" menu', "a polite don't call menu"),
        ("all non-administrator users", "all non administrator users"),
        ("asterisk, charisma", "asterisk charisma"),  # neither `*` nor `a.m.` is in them
    ],
)  # fmt: skip
def test_english_words_are_as_the_voice_says_them(transcript: str, said: str) -> None:
    assert " ".join(spoken_words(transcript)) == said


def test_words_of_any_language_are_those_with_letters() -> None:
    assert words_of("Activé, l'été: 2 fois… (bip)") == ["activé", "l'été", "2", "fois"]
    assert words_of("Нажмите 1 - чтобы") == ["нажмите", "1", "чтобы"]
    assert words_of("[tono ascendente]") == []


def test_transcripts_are_lines_of_name_and_text() -> None:
    text = "; Core: sounds\n\ndigits/1: one\npriv:  I have a caller: who\nno colon here\ndigits/1: uno\n"
    assert parse_transcripts(text) == {"digits/1": "uno", "priv": "I have a caller: who"}


def test_pronunciations_are_of_words_that_are_said() -> None:
    for word in PRONUNCIATIONS:
        assert spoken_words(word) == [word]
