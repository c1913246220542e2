"""Reports of a run: live progress, the evaluation table and the HTML page."""
