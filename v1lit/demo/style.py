"""How the page looks: gradio's colours, light and dark, for what v1lit draws."""

from __future__ import annotations

from v1lit.inference.page_parts import PARTS_STYLE

COLORS = """
--ink: var(--body-text-color); --faint: color-mix(in srgb, var(--ink) 68%, transparent);
--card: var(--block-background-fill); --rule: var(--border-color-primary);
color: var(--ink); font-size: 1rem; line-height: 1.6;
"""
ANSWER_STYLE = f"""
{COLORS}
{PARTS_STYLE}
.status {{ color: var(--faint); font-size: .85em; margin-top: .8em; }}
.hint {{ color: var(--faint); padding: 2em 1em; text-align: center; }}
.parts > * {{ flex-basis: 300px; }}
svg {{ max-height: 60vh; }}
"""
HEAT_STYLE = f"""
{COLORS}
svg {{ display: block; width: 100%; height: auto; max-height: 60vh; margin: .4em 0; }}
rect {{ fill: #d6006c; opacity: .75; }}
p {{ margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }}
.before, .sure {{ color: var(--faint); font-size: .85em; }}
mark {{ background: #d6006c; color: #fff; border-radius: 3px; padding: 0 .2em; }}
"""
PAGE_STYLE = """
.gradio-container { max-width: 1440px !important; margin: 0 auto !important; }
footer { display: none !important; }
"""
