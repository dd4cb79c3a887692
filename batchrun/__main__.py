"""``python -m batchrun`` is ``batchrun``."""

from batchrun.cli.main import main

if __name__ == "__main__":
    main()
