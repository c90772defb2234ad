"""Self-contained HTML pages: plots, attention strips, confusion matrices."""
