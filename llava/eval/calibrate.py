"""Choose the gates' threshold: ``python -m dyvte.engine.calibrate`` under the name it had beside LLaVA's commands."""

from dyvte.engine.calibrate import main

if __name__ == "__main__":
    main()
