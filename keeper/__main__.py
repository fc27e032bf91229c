"""`python -m keeper` is `keeper`."""

from keeper.cli import main

main()
