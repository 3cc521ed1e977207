"""``python -m dcasgd_repro``: the command line."""

from dcasgd_repro.cli.commands import main

if __name__ == "__main__":
    main()
