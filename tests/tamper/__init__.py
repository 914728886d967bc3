"""A mutation campaign: every field of a manifest and every artifact altered so that the hashes are valid again."""
