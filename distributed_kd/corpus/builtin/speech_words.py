"""From a prompt's transcript to the words that its voice says, and how those are said that no dictionary has."""

from __future__ import annotations

import re

# What stands in a transcript for a sound or the writer's note: [beep], (note: ...), <beep ascending>.
_NOTE = re.compile(r"\[.*?\]|\(.*?\)|<.*?>")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# English, as heard in the recordings. Anything else made of digits is said digit by digit.
_SPOKEN = {
    "28.8": "twenty eight point eight",
    "www.asterisk.org": "w w w dot asterisk dot org",
    "*": "star",
    "#": "pound",
    "inter-asterisk": "inter asterisk",
    "re-record": "rerecord",
    "re-enter": "reenter",
    "de-activated": "deactivated",
    "fourtieth": "fortieth",
    "exclaimation": "exclamation",
    "represenatives": "representatives",
    "un-indentified": "unidentified",
    "witheld": "withheld",
    "umute": "unmute",
    "xray": "x ray",
    "a.m.": "a m",
    "p.m.": "p m",
    "pbx": "p b x",
    "ivr": "i v r",
    "iax": "i a x",
    "h.323": "h three two three",
    "mgcp": "m g c p",
}
_REPLACED = re.compile("|".join(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])" for word in sorted(_SPOKEN, reverse=True)))

PRONUNCIATIONS = {
    "backtick": "B AE K T IH K",
    "caret": "K EH R AH T",
    "dahdi": "D AA D IY",
    "digium": "D IH JH IY AH M",
    "forevermore": "F ER EH V ER M AO R",
    "lowercase": "L OW ER K EY S",
    "prepend": "P R IY P EH N D",
    "prepending": "P R IY P EH N D IH NG",
    "rerecord": "R IY R AH K AO R D",
    "semicolon": "S EH M IY K OW L AH N",
    "touchtone": "T AH CH T OW N",
    "undelete": "AH N D AH L IY T",
    "undeleted": "AH N D AH L IY T AH D",
    "unistim": "Y UW N IH S T IH M",
    "unmute": "AH N M Y UW T",
    "unmuted": "AH N M Y UW T AH D",
    "uppercase": "AH P ER K EY S",
    "waldo's": "W AA L D OW Z",
}


def words_of(transcript: str) -> list[str]:
    """The words in order, in small letters; none where the prompt is a sound or silence. For any language."""
    return _WORD.findall(_NOTE.sub(" ", transcript).lower())


def spoken_words(transcript: str) -> list[str]:
    """The same for English, numbers and signs as the voice says them: 1 is `one`, # is `pound`, p.m. is `p m`."""
    text = _REPLACED.sub(lambda found: f" {_SPOKEN[found[0]]} ", _NOTE.sub(" ", transcript).lower())
    text = re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit[0])]} ", text)
    return _WORD.findall(text)
