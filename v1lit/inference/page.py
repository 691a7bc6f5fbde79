"""A prediction as one page of HTML: what points in the text and what it points at light up together.

Nothing is loaded from elsewhere: pictures are in the page, and its policy lets it do no more than show them
and run the script that is written here. All text is escaped.
"""

from __future__ import annotations

import base64
from hashlib import sha256

from v1lit.inference.page_parts import LINKING, PARTS_STYLE, PageContent, escape, sections

STYLE = f"""
:root {{ color-scheme: light dark; --ground: #f4f4f6; --card: #fff; --ink: #1c1c22; --faint: #5f5f6b;
  --rule: #dcdce2; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ground: #17171b; --card: #222228; --ink: #ececf1;
  --faint: #a6a6b3; --rule: #3c3c46; }} }}
{PARTS_STYLE}
body {{ font: 16px/1.6 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
  max-width: 1280px; padding: 1em; }}
"""
SCRIPT = f"""
"use strict";
{LINKING}
linkUp(document);
"""


def render_page(shown: PageContent) -> str:
    """The page."""
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{_digest(STYLE)}'; script-src 'sha256-{_digest(SCRIPT)}'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(shown.question or 'Prediction')}</title><style>{STYLE}</style></head>\n"
        f'<body><main class="parts">{sections(shown)}</main>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _digest(text: str) -> str:
    return base64.b64encode(sha256(text.encode()).digest()).decode()
