"""Gears: a schedule that adapts to each prompt, how it is fitted, and how it is judged."""
