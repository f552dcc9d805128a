"""What a schedule was fitted on, and how a pipeline differs from that."""
