"""The dashboard: ``streamlit run app/main.py``."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import blocks, sidebar, state

PAGES = (
    ("what_if", "What-if", ":material/tune:"),
    ("sweep", "Sweep", ":material/grid_on:"),
    ("serving", "Size a fleet", ":material/lan:"),
    ("traces", "Traces", ":material/query_stats:"),
    ("validation", "Validation", ":material/fact_check:"),
    ("catalogue", "Devices and policies", ":material/menu_book:"),
)

# An icon of our own: a named one would be fetched from a font server.
ICON = Path(__file__).with_name("icon.svg")

st.set_page_config("Shadowline", str(ICON), layout="wide")
page = st.navigation(
    [
        st.Page(f"views/{file}.py", title=title, icon=icon, default=i == 0)
        for i, (file, title, icon) in enumerate(PAGES)
    ],
    position="top",
)
state.open_link()
state.settle()
blocks.notes()
try:
    # The page first, so that its numbers are the first to be seen; widgets hold their values already.
    page.run()
finally:
    sidebar.draw()
state.settle_again()
