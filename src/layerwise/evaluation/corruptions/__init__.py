"""Common corruptions."""
