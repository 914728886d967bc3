"""The words all share: tensors, tokens, tasks, precisions, codes, parity. Free of torch."""
