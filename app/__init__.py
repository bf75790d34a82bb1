"""Streamlit dashboard: inputs and charts, no physics.

Nothing is here yet; the entry will be `app/main.py`.
"""
