"""What a schedule is worth: images, metrics, held-out prompts, certificates."""
