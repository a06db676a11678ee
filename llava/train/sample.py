"""Another name of ``python -m dyvte.gates.sample``."""

from dyvte.gates.sample import main

if __name__ == "__main__":
    main()
