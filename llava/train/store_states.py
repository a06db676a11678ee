"""Another name of ``python -m dyvte.gates.store_states``."""

from dyvte.gates.store_states import main

if __name__ == "__main__":
    main()
