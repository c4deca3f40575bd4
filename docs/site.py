"""mkdocs' hook: the repository's own pages join those of `docs/`, and their links fit the site.

Links to pages lead to pages. What the site has not, a file of the repository, stays as its name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
_JOINING = {
    "README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}  # fmt: skip
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#]*)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for name, page in _JOINING.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    lies_in = {own: other for other, own in _JOINING.items()}
    here = posixpath.dirname(lies_in.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def fitting(link: re.Match[str]) -> str:
        image, title, path, anchor = link.groups()
        target = posixpath.normpath(posixpath.join(here, path))
        own = _JOINING.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(own) is not None:
            return f"{image}[{title}]({own}{anchor or ''})"
        if not (ROOT / target).exists():
            return link[0]  # mkdocs says so
        return title if title.startswith("`") else f"`{target}`"

    return _LINK.sub(fitting, markdown)
