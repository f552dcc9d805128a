"""Other ways to make fewer denoiser calls, each at its best, and a fair comparison with them."""
