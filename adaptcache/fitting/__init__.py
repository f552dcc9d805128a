"""Mathematics on arrays: no torch, no pipeline, no files."""
