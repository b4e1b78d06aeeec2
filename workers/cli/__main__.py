"""``python -m workers.cli``: how processes of ours start each other."""

from workers.cli.main import main

main()
