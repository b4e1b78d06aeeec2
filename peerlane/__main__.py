"""``python -m peerlane``: the command line, where the script is not on PATH."""

from peerlane.workers.cli.main import main

if __name__ == "__main__":
    main(prog_name="peerlane")
