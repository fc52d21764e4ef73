"""HTML files that open without a server or a network, and can reach neither."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from typing import Any


def policy(*scripts: str) -> str:
    """What a page may do: run these scripts, and nothing else; it reaches nobody.

    Names in it are escaped. Should one get through all the same, it could still do nothing.
    """
    digests = (base64.b64encode(sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; form-action 'none'; base-uri 'none'"
    )


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
