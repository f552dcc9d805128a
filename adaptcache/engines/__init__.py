"""Who runs the denoising loop, and the settings files of engines that we only write and read."""
