"""Hooks of mkdocs: add the pages outside of docs/ and all decisions, and refuse what a page loads from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

# The tests of these functions run where mkdocs is not installed.
if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Pages of the repository's top level that the site has too.
TOP_PAGES = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
#: Links to files and folders that the site does not have.
NOT_IN_THE_SITE = re.compile(
    r"\[([^\]]+)\]\((?:(?:\.\./)+(?!ARCHITECTURE|CHANGELOG|CONTRIBUTING|SECURITY)[^)]*|README\.md[^)]*)\)"
)
#: A script, style, font or image of another server. Links that a reader follows are no such thing.
FOREIGN = re.compile(
    r"""<(?:script|img|iframe)\b[^>]*\ssrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?=[^>]*\srel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*\shref=["']?(?:https?:)?//[^>]*>"""
)


def local_links(markdown: str, folder: str) -> str:
    """Return a page's text with links that are right in the site; `folder` is the page's folder below docs/.

    The pages of the top level are beside those of docs/ there. A link to a file that the site does not have becomes
    its text.
    """
    text = re.sub(r"\]\(docs/decisions\)", "](decisions/README.md)", markdown)
    text = re.sub(r"\]\(docs/", "](", text)
    if folder:
        return re.sub(rf"\]\(\.\./\.\./(?={'|'.join(TOP_PAGES)})", "](../", text)
    return NOT_IN_THE_SITE.sub(r"\1", re.sub(rf"\]\(\.\./(?={'|'.join(TOP_PAGES)})", "](", text))


def decisions(folder: Path) -> list[str]:
    """Return the pages of the decisions, the index first, as the navigation names them."""
    return [f"decisions/{path.name}" for path in [folder / "README.md", *sorted(folder.glob("0*.md"))]]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put all decisions into the navigation, so that a new one needs no line in mkdocs.yml."""
    for section in config.nav or ():
        for entry in next(iter(section.values())):
            if isinstance(entry, dict) and "Decisions" in entry:
                entry["Decisions"] = decisions(Path(config.docs_dir) / "decisions")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top level."""
    from mkdocs.structure.files import File

    for name in TOP_PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    return local_links(markdown, page.file.src_uri.rpartition("/")[0])


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads something from another server, since the site works without a network.

    Raises:
        PluginError: the page does.
    """
    if found := FOREIGN.search(output):
        from mkdocs.exceptions import PluginError

        raise PluginError(f"{page.file.src_uri} loads from another server: {found[0]}")
    return output
