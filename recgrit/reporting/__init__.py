"""Pages that show a run, or several side by side: one self-contained HTML file each.

What is shown is computed first, as frozen dataclasses (`contents.py` gathers them); the figures are
built from these alone, and the template places them. A page holds everything it needs, plotly's
code included, and asks nothing of any server.
"""
