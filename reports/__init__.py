"""HTML and PDF reports from a result file (matplotlib, Jinja2, typst).

Nothing is here yet; a report will read the Parquet file that `python -m simulator.sweep` writes.
"""
