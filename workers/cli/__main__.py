"""``python -m peerlane.workers.cli``: how processes of ours start each other."""

from peerlane.workers.cli.main import main

if __name__ == "__main__":
    main()
