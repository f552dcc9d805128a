"""Runs a pipeline by a schedule: the deciding hook, and what it reports."""
