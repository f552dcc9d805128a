"""`python -m adaptcache`, which launchers such as `accelerate launch -m` need."""

from .cli import main

main()
