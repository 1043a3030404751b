"""The site: `sphinx-build docs build/site`. Guides are Markdown; the reference is docstrings."""

import re
import tomllib
from pathlib import Path

from bnjax.version import __version__

DOCS = Path(__file__).parent
ROOT = DOCS.parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

project = "bnjax"
author = copyright = "The bnjax authors"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page that begins with a part of another
html_theme = "furo"
html_title = f"bnjax {version}"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
html_show_sphinx = False
copybutton_prompt_text = ">>> |... |$ "
copybutton_prompt_is_regexp = True
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_admonition_for_examples = False


def link(page, match):
    """A link to a file outside of the site becomes one to the repository."""
    text, target, anchor = match.groups()
    path = (page.parent / target).resolve()
    if path.is_relative_to(DOCS) or not path.is_relative_to(ROOT):
        return match[0]
    kind = "tree" if path.is_dir() else "blob"
    return f"[{text}]({REPOSITORY}/{kind}/main/{path.relative_to(ROOT).as_posix()}{anchor or ''})"


def read(app, name, source):
    """Changes the links of a page, in its text."""
    page = Path(app.env.doc2path(name))
    if page.suffix == ".md":
        source[0] = re.sub(
            r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]+)?\)",
            lambda match: link(page, match),
            source[0],
        )


def docstring(app, what, name, obj, options, lines):
    """Docstrings are Markdown in the small, as people write it; Sphinx wants its own markup."""
    text = "\n".join(lines)
    text = re.sub(r"^Attributes besides those of (`\w+`):$", BESIDES, text, flags=re.M)
    text = re.sub(r"(?<=[^:\s]):\n\n(?=    +\S)", "::\n\n", text)  # an indented program
    text = re.sub(r"(?:^ *\|.*\|$\n?)+", table, text, flags=re.M)
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``\\ ", text)
    code = re.split(r"(``.+?``\\ |^ *(?:>>>|\.\.\.) .*$)", text, flags=re.M | re.S)
    code[::2] = [re.sub(r"(?<![\s\\])\||\|(?=\w)", r"\\|", part) for part in code[::2]]
    lines[:] = "".join(code).split("\n")


BESIDES = r"""And the attributes of \1.

Attributes:"""


def table(match):
    """A table of Markdown as Sphinx knows it, outside of examples."""
    rows = [re.findall(r"(?<=\|)[^|]*(?=\|)", row) for row in match[0].strip("\n").split("\n")]
    if len(rows) < 3 or set("".join(rows[1])) - set("- :"):
        return match[0]
    indent = match[0][: match[0].index("|")]
    if len(indent) > 4:  # the output of an example
        return match[0]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        marks = ["   * -", *["     -"] * (len(row) - 1)]
        lines += [f"{mark} {cell.strip()}" for mark, cell in zip(marks, row, strict=True)]
    return "\n".join(indent + line for line in ["", *lines, "", ""])


def skip(app, what, name, obj, skipped, options):
    """Fields are in the docstring of their class; defaults that are JAX's, in JAX's reference."""
    field = (getattr(obj, "__doc__", "") or "").startswith("Alias for field")
    return True if field or str(getattr(obj, "__module__", "")).startswith("jax") else None


def signature(app, what, name, obj, options, arguments, returns):
    """Values are named, not printed; what Flax adds to every module is left out."""
    arguments = re.sub(r", parent=<.*?>, name=None", "", arguments or "")
    arguments = re.sub(r"<(?:class|function) '?(?:\w+\.)*(\w+)'?(?: at \w+)?>", r"\1", arguments)
    return arguments or None, returns


def setup(app):
    """What Sphinx calls first."""
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before Napoleon
