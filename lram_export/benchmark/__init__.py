"""How fast a bundle is."""
