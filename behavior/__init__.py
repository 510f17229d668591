"""The data side of BertForNextBehavior: event logs, splits, sequences, batches, metrics and baselines."""
