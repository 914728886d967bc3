"""A bundle as other programs take it: one module per format, found by name. Free of torch."""
