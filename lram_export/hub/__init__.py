"""The Hugging Face Hub: addresses there, its client, and what its failures mean."""
