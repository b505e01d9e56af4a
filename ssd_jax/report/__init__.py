"""Reports of runs: report.json, report.html, and runs side by side."""
