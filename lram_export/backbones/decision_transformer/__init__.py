"""Decision Transformer: GPT-2 blocks over the tokens of the last steps (arXiv 2106.01345)."""
