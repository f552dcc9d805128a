"""From reference runs and planned runs to a schedule."""
