"""Places inside of a denoiser where computation is skipped, and what is known of denoisers for that."""
