"""HTML pages that show one run, or compare several models. Each page is one self-contained file.

The content of a page is computed first, as frozen dataclasses (`contents.py` collects them). The
figures are drawn from these dataclasses, and a template puts them into the page. A page includes
everything it needs, also the code of plotly, and makes no network request.
"""
