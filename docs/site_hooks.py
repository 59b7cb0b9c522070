"""What the site has beside the files of docs/: pages from elsewhere in the repository, and pages from docstrings."""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fledge", "aggregator", "worker", "broker", "protocol", "deploy")
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "protocol/SPEC.md": "spec.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/peers.md": "peers.md",
}
"""Pages that do not lie in docs/, and what they are called on the site."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    pages = {site: (ROOT / ours).read_text(encoding="utf-8") for ours, site in ELSEWHERE.items()}
    for name, content in {**pages, "api.md": interface(), **code_pages()}.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links, which are relative to the repository, to pages of the site; a link to a source file is its text."""
    own = page.file.src_uri
    ours = {site: path for path, site in ELSEWHERE.items()}.get(own, f"docs/{own}")

    def on_site(match: re.Match[str]) -> str:
        image, text, link = match.groups()
        path, mark, anchor = link.partition("#")
        if not path or "://" in path or own.startswith("code/"):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(ours), path))
        site = ELSEWHERE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if site is None and (ROOT / target).exists():
            return text
        return f"{image}[{text}]({posixpath.relpath(site or path, posixpath.dirname(own) or '.')}{mark}{anchor})"

    return LINK.sub(on_site, markdown)


def interface() -> str:
    """The page of everything that users import from `fledge`: what its `__init__` names for type checkers."""
    tree = ast.parse((ROOT / "fledge/__init__.py").read_text(encoding="utf-8"))
    [named] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    homes = {name.name: node.module for node in named.body if isinstance(node, ast.ImportFrom) for name in node.names}
    head = "# Python interface\n\n*For those who extend fledge: what `from fledge import …` offers.*"
    names = [
        f"::: {homes[name]}.{name}\n    options: {{show_root_full_path: false, skip_local_inventory: true}}"
        for name in sorted(homes)
    ]
    return "\n\n".join([head, *names])


def code_pages() -> dict[str, str]:
    """A page of docstrings for each room of each package, and their index."""
    index = ["# Code by rooms\n\n*For those who change fledge: what each module offers, from its docstrings.*"]
    pages = {}
    for package in PACKAGES:
        rows = ["| room | what it holds |", "|---|---|"]
        for room in sorted((ROOT / package).iterdir()):
            names, about = contents(room)
            if names:
                name = f"{package}-{room.stem}.md"
                rows.append(f"| [{package}/{room.stem}]({name}) | {about} |")
                pages[f"code/{name}"] = "\n\n".join([f"# {package}/{room.stem}", *(f"::: {each}" for each in names)])
        index += [f"## {package}", "\n".join(rows)]
    return {**pages, "code/index.md": "\n\n".join(index)}


def contents(room: Path) -> tuple[list[str], str]:
    """The modules of a room, and the first sentence of its docstring; a folder of scripts is no room."""
    if room.is_dir() and not (room / "__init__.py").exists():
        return [], ""
    files = [room] if room.suffix == ".py" else sorted(room.rglob("*.py"))
    files = [file for file in files if not file.stem.startswith("__main") and not room.name.startswith("__")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    texts = [ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "" for file in files[:1]]
    return names, " ".join("".join(texts).split("\n\n")[0].split())
