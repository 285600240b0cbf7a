"""What mkdocs does for this site: pages made from the code, and links that leave docs/.

`commands.md` and `api.md` hold a marker each. In place of it, and of what follows it for readers on GitHub, come the
commands' flags and the public names. A link to a file outside docs/ works on the site as in the repository, since the
file is copied into the site.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

import tinymae
from tinymae.commands.cli import COMMANDS, heading_of, help_of, options_of, order_of

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")  # [text](target#anchor), but for addresses
CODE = re.compile(r"<code>([^<]*)</code>")
UNBROKEN = re.compile(r"(?<=\d) (?=[%±])|(?<=±) (?=\d)")  # no line ends in 94.8 ± 0.1 or in 10 %
ROOMS = {
    "interop": "Load and convert", "data": "Data", "models": "Models", "evaluation": "Look inside", "errors": "Errors",
}  # fmt: skip
FIRST = ("load", "MaskedAutoencoder", "Classifier")  # of their room


def on_config(config: MkDocsConfig) -> None:
    """Leave out what the navigation names and nobody has written."""
    config.nav = [entry for entry in config.nav or [] if (ROOT / "docs" / next(iter(entry.values()))).exists()]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add every file of the repository that a page, or a page so added, links to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        source = (ROOT / "docs" / page) if (ROOT / "docs" / page).exists() else ROOT / page
        for _, target, _ in LINK.findall(source.read_text()):
            uri = to_site(page, target)
            if files.get_file_from_path(uri) is None and (ROOT / uri).is_file():
                added = File.generated(config, uri, abs_src_path=str(ROOT / uri), inclusion=InclusionLevel.NOT_IN_NAV)
                files.append(added)
                waiting += [uri] if uri.endswith(".md") else []


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the markers; links as the site has them."""
    here = page.file.src_uri

    def rewrite(match: re.Match) -> str:
        uri = to_site(here, match[2])
        known = files.get_file_from_path(uri) is not None
        return match[1] + (posixpath.relpath(uri, posixpath.dirname(here) or ".") if known else match[2]) + match[3]

    markdown = UNBROKEN.sub("\u00a0", LINK.sub(rewrite, markdown))
    if here == "commands.md":
        markdown = markdown.split("<!-- commands -->")[0] + "\n".join(describe_commands())
    if here == "api.md":
        markdown = markdown.split("<!-- names -->")[0] + "\n".join(list_names())
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """No line ends within a flag, where browsers would break it at a hyphen."""
    return CODE.sub(lambda code: re.sub(r"--[\w-]+", r'<span class="flag">\g<0></span>', code[0]), html)


def to_site(page: str, target: str) -> str:
    """Where the site has what a page links to: pages of docs/ at its root, other files by their path."""
    folder = posixpath.dirname(f"docs/{page}" if (ROOT / "docs" / page).exists() else page)
    path = posixpath.normpath(posixpath.join(folder, target))
    if (ROOT / path).is_dir():
        path += "/README.md"
    return path.removeprefix("docs/")


def describe_commands() -> Iterator[str]:
    """Each command: what its module says, and its flags in the groups of --help."""
    for name, (module_name, settings_name, line) in COMMANDS.items():
        module = import_module(f"tinymae.{module_name}")
        settings = getattr(module, settings_name)
        yield f"## tinymae {name}\n\n{line[0].upper()}{line[1:]}. In Python: `tinymae.{name.replace('-', '_')}`.\n"
        hints, heading = get_type_hints(settings), ""
        shown = [f for f in fields(settings) if not f.metadata.get("python")]
        keys = {
            f.name: (order_of(settings, f), heading_of(settings, f), not f.metadata.get("positional")) for f in shown
        }
        for f in sorted(shown, key=lambda f: keys[f.name]):
            if heading != heading_of(settings, f):
                heading = heading_of(settings, f)
                yield f"\n### {heading} {{ #{name}-{re.sub(r'[^a-z]+', '-', heading)} }}\n"
            yield describe_flag(f, hints[f.name])


def describe_flag(f: Field, kind: object) -> str:
    """A flag as an entry of a definition list: its values, its help and its default."""
    options, flag = options_of(f, kind), f"--{f.name.replace('_', '-')}"
    choices = options.get("choices") or next((get_args(each) for each in get_args(kind) if get_origin(each)), ())
    if choices and all(isinstance(choice, str) for choice in choices):
        value = "{" + ",".join(choices) + "}"
    else:
        value = options.get("metavar", "")
    if options.get("nargs") == "+":
        value += " ..."
    text = help_of(f).replace("%%", "%").replace("<", "&lt;")
    needed = " (required)" if f.default is MISSING else ""
    return f"`{flag}{' ' if value else ''}{value}`\n:   {text}{needed}\n"


def list_names() -> Iterator[str]:
    """The public names but for the commands, for mkdocstrings, in the order of ROOMS."""
    for room, title in ROOMS.items():
        names = [n for home, names in tinymae.HOMES.items() if home.split(".")[0] == room for n in names]
        yield f"\n## {title}\n"
        yield from (f"::: tinymae.{name}\n" for name in sorted(names, key=lambda name: name not in FIRST))
