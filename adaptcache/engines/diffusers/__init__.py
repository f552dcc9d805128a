"""The engine for pipelines of diffusers: the only room that knows a pipeline or a scheduler."""
