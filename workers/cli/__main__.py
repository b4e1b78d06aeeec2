"""``python -m peerlane.workers.cli``, by which Peerlane's processes start each other."""

from peerlane.workers.cli.main import main

if __name__ == "__main__":
    main()
