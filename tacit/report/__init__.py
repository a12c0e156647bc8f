"""What is told about a run: its record, the report page, the privacy statement, the summary."""
