"""Settings of Sphinx. No network is needed; see ``INTERSPHINX`` below."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Read from the sources, whether the package is installed or not.
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project = "flask-serversession"
author = "The flask-serversession maintainers"
copyright = "2026, the flask-serversession maintainers"
release = re.search(r'(?m)^version = "(.+)"', (ROOT / "pyproject.toml").read_text())[1]
version = ".".join(release.split(".")[:2])

extensions = ["sphinx.ext.autodoc", "messages"]
exclude_patterns = ["_build"]
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"flask-serversession {release}"
html_theme_options = {"top_of_page_buttons": []}
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]

# Links into the documentation of Flask and Python need their inventories, which are on
# the network. Without them those names are left as text.
if os.environ.get("INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3/", None),
        "flask": ("https://flask.palletsprojects.com/", None),
        "werkzeug": ("https://werkzeug.palletsprojects.com/", None),
    }

nitpick_ignore_regex = [
    (
        "py:.*",
        r"(cabc|collections|contextlib|datetime|markupsafe|os|pathlib|t|zoneinfo)\..*",
    ),
    ("py:.*", r"(cachelib|flask|sa|sqlalchemy)\..*"),
    ("py:class", "Flask|FlaskClient"),
    # Type variables, and the values of a t.Literal.
    ("py:class", r"flask_serversession\.(sessions|opened)\.T|P|'\w+'"),
]
