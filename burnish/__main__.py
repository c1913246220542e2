"""The command line, as ``python -m burnish``."""

from burnish.cli.app import main

if __name__ == "__main__":
    main()
