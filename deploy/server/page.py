"""The pages at / and /docs: single files, whose policy allows only their own script and requests to this server."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

PAGE, DOCS = "page.html", "docs.html"


@cache
def page(name: str = PAGE) -> tuple[str, str]:
    """Return the HTML and its Content-Security-Policy."""
    html = files("deploy.server").joinpath(name).read_text(encoding="utf-8")
    hashes = {tag: _hash(re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash(parts: list[str]) -> str:
    (text,) = parts
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
