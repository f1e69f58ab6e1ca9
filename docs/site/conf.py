"""Sphinx's configuration of the site; `make site` builds it from the tree that staging.py assembles."""

import os
import sys
from pathlib import Path

# What notebooks and examples compute is small, and several threads wait for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "extensions")]

import inventories  # noqa: E402

import gammabeta  # noqa: E402

project = "gammabeta"
author = "The gammabeta authors"
version = release = gammabeta.__version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "myst_nb",
    "sphinx_copybutton",
    "docstrings",
    "running",
]

# Markdown. Anchors of headings are those that a repository host gives.
myst_heading_anchors = 6
myst_enable_extensions = ["dollarmath"]

# Notebooks run in each build. A cell that fails fails the build; the limit in seconds is for a machine that is busy.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True  # a notebook may write files
nb_merge_streams = True

# Docstrings.
default_role = "py:obj"
autodoc_member_order = "bysource"
# A layer's `forward` is documented in its class.
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style")]

# Every reference leads somewhere; these are the exceptions.
nitpicky = True
nitpick_ignore_regex = [
    # Code in backticks: docstrings put formulas, parameters and names of other libraries there. It is a link where it
    # names something of the reference.
    ("py:obj", r".*"),
    # Base classes, protocols and values of gammabeta that are private, and shown as they are.
    ("py:class", r"gammabeta\..*|_BatchNorm|.*\._\w+"),
    # A dataclass's signature with a default that is no expression, <factory>, is split at commas.
    ("py:class", r"collections\.abc\.Mapping\[str"),
]
# Names of other projects are looked up in small inventories of this repository, so that a build needs no network.
intersphinx_mapping = inventories.mapping()

html_theme = "furo"
html_title = f"gammabeta {release}"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # a summary is fetched, which a page opened from a file cannot
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_copy_empty_lines = False
copybutton_exclude = ".linenos"
