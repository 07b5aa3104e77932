"""Run the command line as `python -m numgeom`."""

from numgeom.cli import main

if __name__ == "__main__":
    main()
