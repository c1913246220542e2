"""What a reader sees of a run: progress while it works, the evaluation table, the HTML report.

Rich, Jinja and plotly are loaded by the modules below that need them, never by ``import burnish``.
"""
