"""One site's table: its declared schema, the readers, and what turns rows into features."""
