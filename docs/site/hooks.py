"""The pages that lie outside docs, and formulas without a script: hooks of MkDocs."""

import re
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File


ROOT = Path(__file__).parents[2]
# Pages of the site that are files of the repository, under the names that links within the site have.
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files, config):
    for name, path in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    for path in [
        ROOT / "CITATION.cff",
        ROOT / "benchmarks" / "README.md",
        *sorted((ROOT / "benchmarks" / "results").iterdir()),
    ]:
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    """Links from where a file lies in the repository to where it lies in the site."""
    if page.file.src_uri.startswith("benchmarks/"):
        return "# Benchmarks\n\n" + _one_level_down(markdown).replace("](../docs/", "](../")
    if page.file.src_uri in PAGES:
        for name, path in PAGES.items():
            markdown = markdown.replace(f"]({path})", f"]({name})")
        return markdown.replace("](docs/", "](")
    for name, path in PAGES.items():
        markdown = markdown.replace(f"](../{path}", f"]({name}")
    return markdown.replace("](../benchmarks/", "](benchmarks/")


def _one_level_down(markdown):
    """Headings, but nothing in a block of code: a page has one title."""
    parts = re.split(r"^(```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else re.sub(r"^#", "##", part, flags=re.MULTILINE) for part in parts)


def on_page_content(html, **_):
    def mathml(match):
        return convert(unescape(match[2]), display="inline" if match[1] == "(" else "block")

    return re.sub(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', mathml, html, flags=re.DOTALL)
