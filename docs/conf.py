"""The documentation as a site: `make docs`. Sphinx with the PyData theme; pages and notebooks in Markdown through MyST.

The pages are read on a code host too, so their links are those of the repository's files: what lies outside of docs/ is linked
as `../notebooks/x.ipynb`, and brought in below.
"""

import inspect
import re
import shutil
import sys
from pathlib import Path

from sphinx.util.inspect import stringify_signature

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = {"notebooks/*.ipynb": "notebooks/{}", "CHANGELOG.md": "changelog.md", "report/REPORT.md": "rows.md"}
sys.path.insert(0, str(ROOT))

project = "gconv"
author = "gconv developers"
exec((ROOT / "gconv" / "version.py").read_text())
version = release = globals()["__version__"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["Thumbs.db", ".DS_Store"]
nitpicky = False

# --- pages: Markdown, whose headings are targets of links ---------------------------------------------------------------
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the changelog is brought in below a page's own title

# --- notebooks: as they were executed; nothing runs here ------------------------------------------------------------------
nb_execution_mode = "off"
nb_merge_streams = True

# --- the reference: docstrings in Google's style --------------------------------------------------------------------------
default_role = "code"
autodoc_typehints = "none"  # the signature has them, and the text says more
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# --- looks ----------------------------------------------------------------------------------------------------------------
html_theme = "pydata_sphinx_theme"
html_title = f"gconv {release}"
html_static_path = ["_static"]
html_css_files = ["gconv.css"]
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "gconv"},
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "show_prev_next": True,
    "navigation_with_keys": False,
    "footer_start": [],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True


def bring_notebooks(app, config):
    """Copies the executed notebooks below docs/, where Sphinx looks for pages."""
    to = HERE / "notebooks"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not (to / path.name).exists() or (to / path.name).read_bytes() != path.read_bytes():
            shutil.copyfile(path, to / path.name)


def links_within(app, docname, source):
    """Links to files that are pages here lead to those pages; what a folder holds cannot be shown, so its name stands there."""
    page = HERE / f"{docname}.md"
    up = "../" * docname.count("/")

    def inside(match):
        text, target = match[1], match[2]
        path = (page.parent / target).resolve()
        if path.is_dir():
            name = path.relative_to(ROOT)
            return f"`{name}`" if text.strip("`") == str(name) else f"{text} (`{name}`)"
        for outside, here in PAGES.items():
            if path.match(outside):
                return f"[{text}]({up}{here.format(path.name)}{match[3] or ''})"
        return match[0]

    # The empty line that ends a doctest's output is of no use to a reader.
    source[0] = source[0].replace("\n\n```\n", "\n```\n")
    source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\(((?:\.\./)+[^)#]+)(#[^)]*)?\)", inside, source[0])


def signature(app, what, name, obj, options, signature, return_annotation):
    """A class is called with the arguments of its `__init__`, whatever its metaclass says; Linen's `parent` is Flax's own."""
    if what == "class":
        parameters = [p for p in inspect.signature(obj.__init__).parameters.values() if p.name not in ("self", "parent")]
        signature = stringify_signature(inspect.Signature(parameters), show_annotation=False)
    return signature and signature.replace("<class 'jax.numpy.float32'>", "jnp.float32"), None


def setup(app):
    app.connect("config-inited", bring_notebooks)
    app.connect("source-read", links_within)
    app.connect("autodoc-process-signature", signature)
