"""What was found, for people: pictures and pages."""
