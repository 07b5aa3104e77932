"""Run a reproduction: `python -m reproductions NAME`."""

from reproductions.command import app

if __name__ == "__main__":
    app(prog_name="python -m reproductions")
