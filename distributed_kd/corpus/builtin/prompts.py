"""The telephone prompts of Asterisk, speech that Debian packages: what each says, and its samples.

Five voices, CC-BY-SA-3.0 (Russian CC-BY-3.0): the same few hundred prompts in each language, with their transcripts.
"""

from __future__ import annotations

import gzip
import importlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distributed_kd.corpus.builtin.filterbanks import RATE
from distributed_kd.errors import RequestError

_VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}
_BITS_A_SECOND = 64_000


@dataclass(frozen=True)
class Prompt:
    name: str  # the file below the voice's folder, without its ending: digits/1
    transcript: str
    path: Path

    def samples(self) -> np.ndarray:
        """[n] int16 at 16 kHz."""
        decoder = needed("G722").G722(RATE, _BITS_A_SECOND)
        return np.asarray(decoder.decode(self.path.read_bytes()), np.int16)


def needed(module: str) -> Any:
    """A module of the extra `speech`. Raises `RequestError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RequestError(
            f"the built-in speech needs {module}, which is not installed: pip install 'distributed-kd[speech]'"
        ) from error


@contextmanager
def prompts(languages: list[str]) -> Iterator[dict[str, list[Prompt]]]:
    """Each language's prompts that have both a transcript and a recording, by name; the files are there in the block.

    They are those of the installed packages, else of packages that apt-get downloads and nothing installs.
    Raises `RequestError` where neither can be had.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path("/")
        if not all(_transcripts(root, language).exists() and _sounds(root, language) for language in languages):
            root = Path(temporary)
            _download(languages, root)
        yield {language: _prompts(root, language) for language in languages}


def parse_transcripts(text: str) -> dict[str, str]:
    """Lines of `name: what is said`; those that begin with ; are comments. Of a name that comes twice the last."""
    lines = (line.partition(":") for line in text.splitlines() if not line.startswith(";"))
    return {name.strip(): said.strip() for name, colon, said in lines if colon}


def _prompts(root: Path, language: str) -> list[Prompt]:
    said = parse_transcripts(gzip.decompress(_transcripts(root, language).read_bytes()).decode("utf-8-sig"))
    sounds = _sounds(root, language)
    return [Prompt(name, said[name], sounds[name]) for name in sorted(sounds.keys() & said.keys())]


def _transcripts(root: Path, language: str) -> Path:
    return root / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"


def _sounds(root: Path, language: str) -> dict[str, Path]:
    folder = root / "usr/share/asterisk/sounds" / _VOICES[language]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.g722")}


def _download(languages: list[str], root: Path) -> None:
    packages = [f"asterisk-core-sounds-{language}{ending}" for language in languages for ending in ("-g722", "")]
    what = f"the built-in speech is in Debian's packages {', '.join(packages)}"
    try:
        subprocess.run(["apt-get", "download", *packages], cwd=root, check=True, capture_output=True, text=True)
        for package in sorted(root.glob("*.deb")):
            subprocess.run(["dpkg", "-x", package.name, "."], cwd=root, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RequestError(f"{what}, and there is no {error.filename} here to fetch them with; install them") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise RequestError(
            f"{what}, and {error.cmd[0]} could not fetch them ({said}); run `apt-get update`, or install them"
        ) from error
