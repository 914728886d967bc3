"""Many exports of one checkpoint, compared."""
