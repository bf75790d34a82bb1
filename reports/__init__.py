"""HTML and PDF reports from result files: ``python -m reports.build sweep.parquet -o report.html -o report.pdf``.

One content model (`content`) is composed per kind of report and rendered twice (`html`, `pdf`).
"""
