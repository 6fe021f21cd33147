# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Sphinx settings. Build with ``python -m sphinx -W -b html docs docs/_build/html``."""

from typing import Any

import pyro_aeb

project = "pyro_aeb"
author = "Contributors to the pyro_aeb project"
project_copyright = "Contributors to the pyro_aeb project"
release = version = pyro_aeb.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
# The tables that scripts write are included in the pages of results.
exclude_patterns = ["_build", "results/*/*.md"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}

# A reference into this package that leads nowhere is a warning, and so an error under -W; those
# into other packages are left alone, for their inventories are not at hand without a network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!pyro_aeb\b).*")]

# A type variable, which autodoc does not list.
nitpick_ignore = [(f"py:{role}", "pyro_aeb.transitions.base.State") for role in ("class", "obj")]

html_theme = "furo"
html_title = f"pyro_aeb {release}"


def resolve_public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """A reference to ``pyro_aeb.Name`` leads to the module that defines the name."""
    package, _, name = node.get("reftarget", "").partition(".")
    if node.get("refdomain") != "py" or package != "pyro_aeb" or name not in pyro_aeb.__all__:
        return None
    found = getattr(pyro_aeb, name)
    target = f"{found.__module__}.{found.__qualname__}"
    domain = env.get_domain("py")
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, contnode
    )


def setup(app: Any) -> None:
    app.connect("missing-reference", resolve_public_name)
