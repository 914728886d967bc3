"""xLSTM: mLSTM and sLSTM blocks (arXiv 2405.04517)."""
