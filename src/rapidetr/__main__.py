"""`python -m rapidetr` is the command `rapidetr`."""

from rapidetr.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
