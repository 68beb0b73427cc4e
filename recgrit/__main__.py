"""``python -m recgrit`` is the ``recgrit`` command."""

from recgrit.cli import main

if __name__ == "__main__":
    main()
