"""What a comparison of contestants found, and its report. Knows no method and no model but their names and numbers."""
