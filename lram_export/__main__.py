"""`python -m lram_export` is `lram-export`."""

from lram_export.entry import main

main()
