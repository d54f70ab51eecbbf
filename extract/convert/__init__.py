"""Files of others -> our formats, and back."""
