"""The Streamlit dashboard: ``streamlit run app/main.py``.

`main` navigates, `state` binds the scenario to the URL, `sidebar` and `composer` edit it, `compute` asks the
simulator, `figures` draws, `words` tells, `blocks` lays out, `views` are the pages. No physics here.
"""
