"""`python -m vtnpipe` is `vtnpipe`."""

from .pipelines.cli import main

if __name__ == "__main__":
    main()
