"""`python -m srquant`: the command line."""

from srquant.cli import main

if __name__ == "__main__":
    main()
