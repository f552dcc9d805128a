"""The command line, also as `python -m adaptcache`, which launchers such as `accelerate launch -m` need."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C stops it while it is still imported, too."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
