"""`python -m m3bind` is the command line."""

from m3bind.cli import main

main()
