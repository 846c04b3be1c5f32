"""``python -m sumfold`` is the command line."""

from sumfold.cli.main import main

if __name__ == "__main__":
    main()
