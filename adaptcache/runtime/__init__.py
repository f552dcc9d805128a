"""Follows a schedule during a run, and reports what it did."""
