# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Sphinx settings. Build with ``python -m sphinx -W -b html docs docs/_build/html``."""

import functools
import importlib
import re
from typing import Any, get_origin

from docutils import nodes

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
    # MathJax from this site, so that formulas need no other host.
    "sphinx-mathjax-offline",
]
# The tables that scripts write are included in the pages of results.
exclude_patterns = ["_build", "results/*/*.md"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}

# A longer signature has a line for each parameter.
maximum_signature_line_length = 80

# A reference into this package that leads nowhere is a warning, and so an error under -W; those
# into other packages are left alone, for their inventories are not at hand without a network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!pyro_aeb\b).*")]

html_theme = "furo"
html_title = f"pyro_aeb {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_favicon = "_static/favicon.svg"


def locate(name: str) -> Any:
    """Return the object of a dotted name, or None where there is none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


@functools.cache
def documented(domain: Any) -> dict[int, str]:
    """Return the name under which the reference documents an object, by the object's id."""
    names = [name for name, entry in domain.objects.items() if not entry.aliased]
    return {id(locate(name)): name for name in names if name.startswith("pyro_aeb")}


def resolve_public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """
    Resolve a reference by an object's defining module: its documentation stands under the name by
    which programs import it. In a signature an internal type is no link; elsewhere it is an error.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("pyro_aeb."):
        return None
    domain = env.get_domain("py")
    owner, _, member = target.rpartition(".")
    for name, rest in ((target, ""), (owner, f".{member}")):
        public = documented(domain).get(id(locate(name)), "") + rest
        arguments = (env, node["refdoc"], app.builder, node["reftype"], public)
        if link := domain.resolve_xref(*arguments, node, contnode):
            return link
    return contnode if isinstance(contnode, nodes.Text) else None


def replace_internal_bases(app: Any, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """Show the first public ancestor of a class in the place of an internal or generic base."""

    def is_public(base: Any) -> bool:
        package, *wing = getattr(base, "__module__", "").split(".")[:2]
        home = locate(".".join([package, *wing]))
        return package != "pyro_aeb" or base.__name__ in getattr(home, "__all__", ())

    classes = [get_origin(base) or base for base in bases]
    ancestors = [next(filter(is_public, getattr(base, "__mro__", [base]))) for base in classes]
    bases[:] = [base for base in dict.fromkeys(ancestors) if base is not object] or [object]


def name_default_functions(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str | None, Any]:
    """Write a default that is a function by its name; its ``repr`` cannot be parsed as Python."""
    return signature and re.sub(r"<function (\w+)>", r"\1", signature), returns


def link_sources_to_public_names(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """
    Let the links of a page of source code lead to public names: ``viewcode`` writes one prefix for
    all that a module defines, while a module's objects may be public in several places.
    """
    folder, _, path = pagename.partition("/")
    if folder != "_modules" or path == "index":
        return
    domain = app.env.get_domain("py")

    def correct(match: re.Match[str]) -> str:
        parts = match[1].split(".")
        for length in (1, 2):
            owner = locate(".".join([*path.split("/"), parts[-length]]))
            public = None if owner is None else documented(domain).get(id(owner))
            if public:
                return f'#{".".join([public, *parts[len(parts) - length + 1 :]])}"'
        return match[0]

    context["body"] = re.sub(r'(?<=\.html)#(pyro_aeb[\w.]+)"', correct, context["body"])


def link_pictures(app: Any, doctree: Any, docname: str) -> None:
    """Let a picture lead to its file, in which a click enlarges what is small on the page."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        if isinstance(image.parent, nodes.reference) or image["uri"] not in app.env.images:
            continue
        _, name = app.env.images[image["uri"]]
        link = nodes.reference(
            "", "", image.deepcopy(), refuri="../" * docname.count("/") + f"_images/{name}"
        )
        image.replace_self(link)


def setup(app: Any) -> None:
    app.connect("doctree-resolved", link_pictures)
    app.connect("html-page-context", link_sources_to_public_names)
    app.connect("autodoc-process-signature", name_default_functions)
    app.connect("missing-reference", resolve_public_name)
    app.connect("autodoc-process-bases", replace_internal_bases)
