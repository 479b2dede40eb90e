"""`python -m holdfast`: the command line, where its program is not in the search path."""

from holdfast.cli.main import main

if __name__ == "__main__":
    main(prog_name="holdfast")
