"""`python -m dfkd` is the same as `dfkd`."""

from dfkd.cli import main

if __name__ == "__main__":
    main()
