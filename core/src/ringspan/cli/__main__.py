"""`python -m ringspan.cli` is `ringspan`."""

from ringspan.cli import main

main()
