"""`python -m srquant`: the command line."""

from srquant.cli import main

main()
