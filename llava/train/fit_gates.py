"""Another name of ``python -m dyvte.gates.fit``."""

from dyvte.gates.fit import main

if __name__ == "__main__":
    main()
