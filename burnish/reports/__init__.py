"""Reports of a run: live progress, the evaluation table and the HTML page.

Rich, Jinja and plotly are imported by the modules that need them, never by ``import burnish``.
"""
