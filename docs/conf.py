"""How the documentation is built: ``sphinx-build -W --keep-going docs docs/_build``."""

from __future__ import annotations

import pkgutil
import zlib
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.pycode import ModuleAnalyzer

import flask_sqlalchemy_session as package

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent

project = "Flask-SQLAlchemy-Session"
version = release = installed_version("flask-sqlalchemy-session")
project_copyright = "the contributors of Flask-SQLAlchemy-Session"
language = "en"
smartquotes = False  # errors are quoted, and searched for

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
exclude_patterns = ["_build"]

# A name that leads nowhere is a mistake, and with -W a failure.
nitpicky = True
nitpick_ignore_regex = [
    # asgiref's documentation has no reference.
    ("py:class", r"asgiref\.wsgi\.WsgiToAsgi"),
    # Type variables have no place to lead to.
    ("py:class", r"(flask_sqlalchemy_session\.[\w.]+\.)?_?(P|F|T|A?S(_co)?)"),
]

myst_heading_anchors = 3
myst_enable_extensions = ["attrs_block", "attrs_inline", "deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "furo"
templates_path = ["_templates"]
html_use_index = False  # the page of the API has all of its names
pygments_dark_style = "github-dark"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/logo-light.svg"
html_theme_options = {"light_logo": "logo-light.svg", "dark_logo": "logo-dark.svg"}
html_copy_source = False
html_show_sourcelink = False


def _inventory(name: str) -> str:
    """Make an inventory of the names in a text file, so that none is downloaded.

    Each line has what an inventory's has: a name, its role, a priority, where it
    leads, and the text to show.
    """
    names = (HERE / "inventories" / f"{name}.txt").read_bytes()
    header = (
        "# Sphinx inventory version 2\n"
        f"# Project: {name}\n"
        "# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    file = HERE / "_build" / "inventories" / f"{name}.inv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(header.encode() + zlib.compress(names))
    return str(file)


intersphinx_mapping = {
    "python": ("https://docs.python.org/3", _inventory("python")),
    "flask": ("https://flask.palletsprojects.com/en/stable", _inventory("flask")),
    "sqlalchemy": ("https://docs.sqlalchemy.org/en/20", _inventory("sqlalchemy")),
}


def _take_docstring_from_its_module(  # noqa: PLR0913, PLR0917  # Sphinx calls it so
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Give data the docstring that stands below it in the module that it is from.

    Sphinx looks for it in the module that it is imported from.
    """
    if what == "data":
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            found = ModuleAnalyzer.for_module(module.name).find_attr_docs()
            if docstring := found.get(("", name.rpartition(".")[2])):
                lines[:] = docstring


# What the theme and Sphinx leave out, and who can't see or has no mouse needs.
ACCESSIBLE = {
    '<p class="caption" role="heading">': (
        '<p class="caption" role="heading" aria-level="2">'
    ),
    '<aside class="sidebar-drawer': '<aside aria-label="Site" class="sidebar-drawer',
    '<aside class="toc-drawer': '<aside aria-label="Page" class="toc-drawer',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    "<pre>": '<pre tabindex="0">',
}


def _make_accessible(app: Sphinx, error: Exception | None) -> None:
    """Name the headings and landmarks, and let the keyboard reach all that scrolls."""
    for page in app.outdir.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for made, accessible in ACCESSIBLE.items():
            text = text.replace(made, accessible)
        page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("build-finished", _make_accessible)
    app.connect("autodoc-process-docstring", _take_docstring_from_its_module)
