"""Sphinx settings; `make docs` builds the site, offline, and a warning is an error."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "Shadowline"
author = "The Shadowline authors"
copyright = author
release = version = metadata.version("shadowline")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx_design",
    "docsite.docstrings",  # equations of module docstrings
    "docsite.mathml",  # equations without a script
    "docsite.generated",  # pages written from code at build time
    "docsite.offline",  # nothing is asked of the network
]
exclude_patterns = ["docsite", "howto/strided_kv"]
default_role = "literal"  # `name` in a docstring is code
smartquotes = False  # --flag is no dash

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath", "linkify"]
myst_heading_anchors = 3
# A file name such as claims.md or README.md in the text is no address.
myst_linkify_fuzzy_links = False

autodoc_default_options = {
    "members": True,
    "ignore-module-all": True,
    "exclude-members": "model_config, model_post_init",  # pydantic's own
}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc sections carry types, units and shapes
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"Shadowline {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_math_renderer = "mathml"
