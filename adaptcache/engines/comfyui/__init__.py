"""The engine for ComfyUI: wrappers of a MODEL, between which a hook decides. Knows no diffusers."""
