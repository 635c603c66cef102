"""Settings of the book, which ``sphinx-build`` makes of this folder (``scripts/test.sh``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from from_code import api_page, commands_page  # noqa: E402

import monai_xtiny  # noqa: E402

project = "monai_xtiny"
copyright = "the authors of monai_xtiny"
version = release = monai_xtiny.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # tables of a benchmark may begin with a section
myst_fence_as_directive = ["math"]  # which other readers of Markdown know too
smartquotes = False  # it would make one dash of the two of an option
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"monai_xtiny {release}"
html_copy_source = html_show_sourcelink = False
html_static_path, html_css_files = ["_static"], ["book.css"]
html_math_renderer = "mathml"

# Marks in pages, and what is written in their places.
WRITTEN = {"commands": commands_page, "api": api_page}


def write_from_code(app: Sphinx, name: str, source: list[str]) -> None:
    """Put what is written from the code, or found in the folder, into its page."""
    if name in WRITTEN:
        source[0] = source[0].replace("<!-- from the code -->", WRITTEN[name]())
    if name == "index":  # it names pages with a * that may be missing
        lines = source[0].splitlines()
        kept = [line for line in lines if line[-1:] != "*" or any(HERE.glob(f"{line}.md"))]
        source[0] = "\n".join(kept)


def visit_math(translator: Any, node: nodes.Element) -> None:
    """Browsers draw MathML themselves: no script, and nothing that is asked for from outside."""
    try:
        is_block = isinstance(node, nodes.math_block)
        translator.body.append(tex2mathml(node.astext(), as_block=is_block))
    except MathError as error:
        logging.getLogger(__name__).warning("equation: %s", error, location=node)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", write_from_code)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
