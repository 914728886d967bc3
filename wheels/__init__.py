"""Release wheels with the native engine, for every Python and processor, cross-compiled here: `make wheels`."""
