"""`python -m gritax`."""

from .cli import main


if __name__ == "__main__":
    main()
