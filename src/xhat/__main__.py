"""``python -m xhat``: the same as the command ``xhat``."""

from xhat.cli import main

main()
