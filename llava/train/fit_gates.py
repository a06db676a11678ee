"""Another name of ``python -m dyvte.gates.fit``."""

from dyvte.cli import one_line_errors
from dyvte.gates.fit import PROG, main

if __name__ == "__main__":
    with one_line_errors(PROG):
        main()
