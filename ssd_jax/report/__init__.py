"""What a run leaves to be read: report.json, report.html, and runs side by side."""
